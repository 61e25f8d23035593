"""What an RL row's ground truth says, in whichever notation it is written: calls, a reply, or no call."""

import contextlib
from typing import Any

from dcore_jax.calls import Call, parse_any_response
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.messages import tool_call
from dcore_jax.data.record import Reference

_NEITHER = "a ground truth that is neither calls nor a reply"


def reference_of(truth: Any) -> Reference:
    """The reference of a ground truth.

    Read: text in any notation of calls, with or without a thought (ToolRL's tags, D-CORE's Python list, whose `[]` is "no call"),
    a list of call objects or its JSON text, a list with one such text, and a reply in words. Text without a space and without a
    tag, such as the number of a mathematics row, is neither.

    Raises:
      Malformed: a ground truth that cannot be read; never "no call expected" for one that attempts calls.
    """
    if isinstance(truth, list) and len(truth) == 1 and isinstance(truth[0], str):
        truth = truth[0]
    if isinstance(truth, str) and truth.strip().startswith('"'):
        with contextlib.suppress(Malformed):
            truth = decode_json(truth, "not JSON")  # JSON text of a text
    if isinstance(truth, dict):
        truth = [truth]
    if isinstance(truth, list):
        return Reference(_calls(truth))
    if not isinstance(truth, str):
        raise Malformed("reward_model.ground_truth is neither text nor a list of calls")
    text = truth.strip()
    listed = None
    if text[:1] in ("[", "{"):
        with contextlib.suppress(Malformed):
            listed = decode_json(text, "not JSON")
    if isinstance(listed, list) and listed:
        return Reference(_calls([decode_json(item, "a call that is not JSON") for item in listed]))
    if isinstance(listed, dict) and "name" in listed:
        return Reference(_calls([listed]))
    parsed, notation = parse_any_response(text)
    if parsed.calls is None:
        raise Malformed(f"a ground truth that cannot be read: {parsed.error}")
    if notation is None and parsed.calls:
        raise Malformed("a ground truth in a notation that no response can be scored in")
    if notation is None and not (parsed.thought or "<response>" in text or " " in parsed.reply):
        raise Malformed(_NEITHER)
    # `[]` says that no call is expected, and not that nothing is to be said.
    replies = bool(parsed.reply) if parsed.calls or parsed.reply else None
    return Reference(parsed.calls, replies, notation or ("tags" if "<response>" in text else None))


def _calls(listed: list[Any]) -> tuple[Call, ...]:
    try:
        return tuple(Call(**tool_call(item)["function"]) for item in listed)
    except Malformed as reason:
        raise Malformed(f"a ground truth that cannot be read: {reason}") from None
