r"""Calls as JSON objects: ToolRL's and ResT's tags, Qwen3's own format, and bare JSON as Llama 3.1, Mistral and xLAM write it.

tags:  one block, one object per line        <tool_call> {"name": ..., "parameters": {...}} </tool_call>
qwen:  one block per call, one object inside <tool_call> {"name": ..., "arguments": {...}} </tool_call>
json:  the whole answer is one object, or a list of objects, with "arguments" or "parameters"

Fields beyond these two are ignored, as a server that runs the calls would.
"""

import json
import math
import re
from collections.abc import Sequence

from dcore_jax.calls.blocks import CLOSE, OPEN
from dcore_jax.calls.bounds import (
    MAX_CALLS,
    MAX_VALUES,
    CallSyntaxError,
    check_digits,
    check_text,
    check_value,
)
from dcore_jax.calls.call import JSON, Call

ARGUMENT_KEYS = ("arguments", "parameters")
_TAG = re.compile(r"<(?=/?(?:think|tool_call|tool_response|response)>)")


def parse_json_calls(blocks: Sequence[str], arguments_key: str, *, one_per_line: bool) -> tuple[Call, ...]:
    """The calls inside the given blocks (the text between the tags).

    Args:
      blocks: the inside of each `<tool_call>` block, in order.
      arguments_key: "parameters" (tags) or "arguments" (qwen).
      one_per_line: each line that is not blank holds one object (tags), else each block does (qwen).

    Raises:
      CallSyntaxError: a block that breaks the format or a limit of `bounds`.
    """
    written = [line for block in blocks for line in (block.split("\n") if one_per_line else [block])]
    if one_per_line:
        written = [line for line in written if line.strip()]
    if len(written) > MAX_CALLS:
        raise CallSyntaxError("too many calls")
    calls = []
    budget = MAX_VALUES
    for text in written:
        call, count = _parse_object(text, arguments_key, budget)
        budget -= count
        calls.append(call)
    return tuple(calls)


def parse_bare_json_calls(text: str) -> tuple[Call, ...]:
    """The calls of `{"name": ..., "arguments": {...}}` or of a list of such objects; "parameters" is read as well.

    Raises:
      CallSyntaxError: anything else.
    """
    value = load_json(text)
    items = value if isinstance(value, list) else [value]
    if len(items) > MAX_CALLS:
        raise CallSyntaxError("too many calls")
    calls = []
    budget = MAX_VALUES
    for item in items:
        key = next((key for key in ARGUMENT_KEYS if isinstance(item, dict) and key in item), ARGUMENT_KEYS[0])
        call, count = _call_of(item, key, budget)
        budget -= count
        calls.append(call)
    return tuple(calls)


def render_bare_json_calls(calls: Sequence[Call]) -> str:
    """A list of objects with "arguments"; `[]` for no calls. Raises CallSyntaxError."""
    return f"[{', '.join(_render_object(call, 'arguments') for call in calls)}]"


def render_tags_calls(calls: Sequence[Call]) -> str:
    """One block with one object per line; the empty text for no calls. Raises CallSyntaxError."""
    lines = [_render_object(call, "parameters") for call in calls]
    return "\n".join([OPEN, *lines, CLOSE]) if lines else ""


def render_qwen_calls(calls: Sequence[Call]) -> str:
    """One block per call, as Qwen3's chat template writes them; the empty text for no calls. Raises CallSyntaxError."""
    return "\n".join(f"{OPEN}\n{_render_object(call, 'arguments')}\n{CLOSE}" for call in calls)


def _parse_object(text: str, arguments_key: str, budget: int) -> tuple[Call, int]:
    if not text.strip():
        raise CallSyntaxError("an empty call block")
    return _call_of(load_json(text), arguments_key, budget)


def load_json(text: str) -> JSON:
    """A JSON value with bounded numbers and without a key that is given twice. Raises CallSyntaxError."""
    try:
        # json's scanner is recursive, and stops at the interpreter's limit with RecursionError.
        return json.loads(
            text,
            object_pairs_hook=_mapping,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except RecursionError:
        raise CallSyntaxError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise CallSyntaxError("not JSON", error.pos) from None


def _call_of(value: JSON, arguments_key: str, budget: int) -> tuple[Call, int]:
    """The call of an object, and the number of values in its arguments."""
    if not isinstance(value, dict):
        raise CallSyntaxError("a call that is not a JSON object")
    name, arguments = value.get("name"), value.get(arguments_key)
    if not isinstance(name, str) or not name:
        raise CallSyntaxError("no tool name")
    if arguments_key not in value:
        raise CallSyntaxError(f'no "{arguments_key}"')
    if not isinstance(arguments, dict):
        raise CallSyntaxError(f'"{arguments_key}" that is not an object')
    check_text(name)
    return Call(name, arguments), check_value(arguments, budget)


def _mapping(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise CallSyntaxError("a key given twice")
    return mapping


def _integer(written: str) -> int:
    check_digits(written)
    return int(written)


def _float(written: str) -> float:
    check_digits(written)
    value = float(written)
    if not math.isfinite(value):
        raise CallSyntaxError("a number that is not finite")
    return value


def _constant(written: str) -> float:
    raise CallSyntaxError("a number that is not finite")


def _render_object(call: Call, arguments_key: str) -> str:
    if not call.name:
        raise CallSyntaxError("no tool name")
    check_text(call.name)
    arguments = dict(call.arguments)
    check_value(arguments)
    written = json.dumps({"name": call.name, arguments_key: arguments}, ensure_ascii=False)
    # "<" occurs only inside strings; there it is escaped, so that a tag in a string cannot end the block.
    return _TAG.sub(r"\\u003c", written)
