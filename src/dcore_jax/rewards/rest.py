"""ResT's rewards (arXiv 2509.21826): Eq. 10-14 of the paper, and what its release runs instead.

Both use ResT's format rule, which requires the right tags in the right order and, unlike ToolRL's, leaves the white
space between them free. Tags that a thought mentions do not count.
"""

from collections.abc import Sequence

from dcore_jax.calls import Call, CallFormat, ParsedResponse, split_thought
from dcore_jax.rewards.matching import accuracy
from dcore_jax.rewards.reward import Reward, sum_of
from dcore_jax.rewards.toolrl import read_accuracy

# The release moves its scale over this many training steps: progress 1 is step 150.
RELEASE_STEPS = 150

_CALL_TAGS, _REPLY_TAGS = ("<tool_call>", "</tool_call>"), ("<response>", "</response>")


def rest_paper_reward(
    text: str,
    parsed: ParsedResponse,
    reference: Sequence[Call],
    *,
    call_format: CallFormat,
    progress: float = 0.0,
    beta_accuracy: float = 1.0,
    beta_format: float = 1.0,
    expects_reply: bool | None = None,
) -> Reward:
    """R = (1 - progress) * (beta_accuracy * S_acc + beta_format * S_format).

    S_acc is `matching.accuracy` in [0, 1], 0 for calls that cannot be parsed; with no call expected it is 1 for a
    response that makes none. The paper gives no value for the betas; the defaults of 1 are ours.

    Source:
      ResT, 2509.21826, Eq. 10-14.
    """
    score = 0.0 if parsed.calls is None else accuracy(parsed.calls, reference)
    good = follows_format(text, parsed, bool(reference), call_format, expects_reply)
    parts = {
        "format": (1 - progress) * beta_format * good,
        "accuracy": (1 - progress) * beta_accuracy * score,
    }
    return sum_of(parts, parsed.error)


def rest_release_reward(
    text: str,
    parsed: ParsedResponse,
    reference: Sequence[Call],
    *,
    call_format: CallFormat,
    progress: float = 0.0,
    expects_reply: bool | None = None,
) -> Reward:
    """ToolRL's two parts on a scale that moves with progress nu = step / 150, at most 1.

    format: 2 - nu if the rule is followed, else min(-1, 2 nu - 2): from +-2 to +-1, the penalty in half the time.
    correctness: from -(2 + nu) to 2 + nu, linear in `matching.accuracy`; 0 if no call is expected.

    Source:
      The code of ResT's release.
    """
    low, high = format_scale(progress)
    good = follows_format(text, parsed, bool(reference), call_format, expects_reply)
    limit = 2.0 + progress
    parts = {
        "format": high if good else low,
        "correctness": 2 * limit * read_accuracy(parsed, reference) - limit if reference else 0.0,
    }
    return sum_of(parts, parsed.error)


def format_scale(progress: float) -> tuple[float, float]:
    """The release's format reward if the format rule is broken, and if it is followed."""
    return min(-1.0, 2.0 * progress - 2.0), 2.0 - progress


def follows_format(
    text: str,
    parsed: ParsedResponse,
    expects_calls: bool,
    call_format: CallFormat,
    expects_reply: bool | None = None,
) -> bool:
    """Whether a thought is followed by the tags that the turn should have, each once and in order.

    Under `tags`, a reply next to calls breaks the rule where only calls are expected; a call next to a reply
    does not where only a reply is (as in the release). Other formats: calls and reply present exactly as
    expected.
    """
    if expects_reply is None:
        expects_reply = not expects_calls
    _, answer, closed = split_thought(text)
    if not closed or "<think>" not in text[: len(text) - len(answer)]:
        return False
    if call_format != "tags":
        return bool(parsed.call_text) == expects_calls and bool(parsed.reply) == expects_reply
    if expects_calls and not expects_reply and any(tag in answer for tag in _REPLY_TAGS):
        return False
    tags = _CALL_TAGS * expects_calls + _REPLY_TAGS * expects_reply
    at = [answer.find(tag) for tag in tags]
    return all(answer.count(tag) == 1 for tag in tags) and at == sorted(at)
