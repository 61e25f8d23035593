r"""D-CORE's rewards (arXiv 2602.02160): Eq. 15-18 of the paper, and what its release runs instead.

Both share one format rule, whatever the call format: the stripped response opens with "<think>\n" and closes
its thought with "\n</think>\n\n".
"""

from collections.abc import Sequence

from dcore_jax.calls import Call, ParsedResponse
from dcore_jax.rewards.matching import match_calls
from dcore_jax.rewards.reward import Reward, sum_of
from dcore_jax.rewards.toolrl import MAX_CORRECTNESS, read_accuracy

_OPENING, _CLOSING = "<think>\n", "\n</think>\n\n"


def follows_format(text: str) -> bool:
    """Whether the stripped text starts "<think>\\n" and later holds "\\n</think>\\n\\n" and an answer."""
    text = text.strip()
    return text.startswith(_OPENING) and _CLOSING in text[len(_OPENING) :]


def dcore_paper_reward(text: str, parsed: ParsedResponse, reference: Sequence[Call]) -> Reward:
    """R = R_format + R_struct + R_key + R_value, each in [0, 1].

    struct: 1 if the tool names are the same, each as often; else 0.
    key: share of reference calls whose set of parameter names is predicted exactly.
    value: mean over reference calls of the share of their parameters that have an equal value; a call without
      parameters counts 1 if a prediction is matched to it.

    Calls are paired by `matching.match_calls`. Calls that cannot be parsed earn nothing beyond the format. If no call
    is expected, the last three are 1 for a response that makes none, and 0 otherwise: the paper leaves that case open.

    Source:
      D-CORE, 2602.02160, Eq. 15-18.
    """
    parts = {"format": float(follows_format(text)), "struct": 0.0, "key": 0.0, "value": 0.0}
    if parsed.calls is not None and not reference:
        parts |= dict.fromkeys(("struct", "key", "value"), float(not parsed.calls))
    elif parsed.calls:
        names = sorted(call.name for call in reference)
        matches = match_calls(parsed.calls, reference)
        found = [(m.reference.arguments, m.predicted.arguments, m.values) for m in matches if m.predicted]
        parts["struct"] = float(sorted(call.name for call in parsed.calls) == names)
        parts["key"] = sum(asked.keys() == given.keys() for asked, given, _ in found) / len(reference)
        parts["value"] = sum(n / len(asked) if asked else 1.0 for asked, _, n in found) / len(reference)
    return sum_of(parts, parsed.error)


def dcore_release_reward(text: str, parsed: ParsedResponse, reference: Sequence[Call]) -> Reward:
    """ToolRL's correctness in [-3, 3] with a rule for turns without calls, plus the format in {0, 1}.

    If no call is expected: +3 for a response that attempts none, -3 for one that does. A response whose thought is cut
    off attempts none.

    Source:
      The code of D-CORE's release.
    """
    if reference:
        correctness = 6 * read_accuracy(parsed, reference) - MAX_CORRECTNESS
    else:
        correctness = -MAX_CORRECTNESS if parsed.call_text else MAX_CORRECTNESS
    return sum_of({"format": float(follows_format(text)), "correctness": correctness}, parsed.error)
