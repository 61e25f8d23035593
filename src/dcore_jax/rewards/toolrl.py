"""ToolRL's reward (arXiv 2504.13958): a format rule in {0, 1} and a correctness in [-3, 3].

Under the `tags` format the rule is the published one: a thought, one line break, then the blocks that the
turn should have, each once, and nothing else. Qwen3's chat template writes two line breaks there, so that no target that
was trained through it can follow the rule: `toolrl_any_space` allows any white space. ToolRL has no rule for the other
formats; ours is a thought, then only calls (or, if no call is expected, only a reply). Tags that a thought mentions do not
count.
"""

import re
from collections.abc import Sequence

from dcore_jax.calls import Call, CallFormat, ParsedResponse, split_thought
from dcore_jax.rewards.matching import accuracy
from dcore_jax.rewards.reward import Reward, sum_of

MAX_CORRECTNESS = 3.0

_CALL_TAGS, _REPLY_TAGS = ("<tool_call>", "</tool_call>"), ("<response>", "</response>")
# (calls expected, reply expected) -> the layout after the thought's white space, and the tags that must occur once in it.
_LAYOUTS = {
    (True, False): (re.compile(r"<tool_call>\n.*\n</tool_call>", re.DOTALL), _CALL_TAGS),
    (False, True): (re.compile(r"<response>.*</response>", re.DOTALL), _REPLY_TAGS),
    (True, True): (
        re.compile(r"<tool_call>\n.*\n</tool_call>\n<response>.*</response>", re.DOTALL),
        _CALL_TAGS + _REPLY_TAGS,
    ),
    (False, False): (re.compile(""), ()),
}


def toolrl_reward(
    text: str,
    parsed: ParsedResponse,
    reference: Sequence[Call],
    *,
    call_format: CallFormat,
    expects_reply: bool | None = None,
    any_space: bool = False,
) -> Reward:
    """format + correctness, in [-3, 4]; without reference calls correctness is 0, so in [0, 1].

    correctness = 6 * accuracy - 3 (see `matching.accuracy`); -3 if the calls cannot be parsed or there are none.

    Args:
      text, parsed: the response, and the result of `parse_response` on it.
      reference: the calls that are expected; empty for none.
      call_format: the format the response is written in.
      expects_reply: whether the reference turn replies to the user; None: it does if it makes no call.
      any_space: allow any white space between `</think>` and the first block, where the published rule wants one line
        break: Qwen3's template writes two.

    Source:
      ToolRL, 2504.13958, section 3.3.
    """
    parts = {
        "format": float(follows_format(text, parsed, bool(reference), call_format, expects_reply, any_space)),
        "correctness": 6 * read_accuracy(parsed, reference) - MAX_CORRECTNESS if reference else 0.0,
    }
    return sum_of(parts, parsed.error)


def read_accuracy(parsed: ParsedResponse, reference: Sequence[Call]) -> float:
    """`matching.accuracy` of the parsed calls; 0 if there are none or they could not be parsed."""
    return accuracy(parsed.calls, reference) if parsed.calls else 0.0


def follows_format(
    text: str,
    parsed: ParsedResponse,
    expects_calls: bool,
    call_format: CallFormat,
    expects_reply: bool | None = None,
    any_space: bool = False,
) -> bool:
    """Whether the stripped response has ToolRL's layout; its calls may be wrong, or impossible to parse."""
    if expects_reply is None:
        expects_reply = not expects_calls
    _, answer, closed = split_thought(text)
    if not closed or not text.lstrip().startswith("<think>"):
        return False
    if call_format != "tags":
        return bool(parsed.call_text) == expects_calls and bool(parsed.reply) == expects_reply
    pattern, tags = _LAYOUTS[expects_calls, expects_reply]
    answer = answer.rstrip()
    laid_out = answer.lstrip() if any_space else answer.removeprefix("\n")
    if tags and not any_space and laid_out == answer:
        return False  # no line break after the thought
    return all(answer.count(tag) == 1 for tag in tags) and bool(pattern.fullmatch(laid_out))
