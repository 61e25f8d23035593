"""The interface of all call formats: parses an assistant turn into thought, calls and reply, and renders calls."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from dcore_jax.calls.bounds import MAX_CHARACTERS, CallSyntaxError
from dcore_jax.calls.call import Call
from dcore_jax.calls.json_format import CLOSE, OPEN, parse_json_calls, render_qwen_calls, render_tags_calls
from dcore_jax.calls.python_format import parse_python_calls, render_python_calls
from dcore_jax.errors import UserError, check_choice

# One of CALL_FORMATS. Not a Literal: the name comes from a user's config, where a wrong one must raise UserError.
CallFormat: TypeAlias = str
CALL_FORMATS: tuple[CallFormat, ...] = ("python", "tags", "qwen")


class ParsedResponse(NamedTuple):
    """The parts of an assistant turn."""

    thought: (
        str | None
    )  # between `<think>` and the last `</think>`, stripped; None when the turn has no thought
    calls: (
        tuple[Call, ...] | None
    )  # () when the turn makes none; None when they could not be parsed, see `error`
    reply: str  # the text for the user, stripped; "" when there is none
    call_text: str = ""  # what was parsed as calls, with its tags or brackets; "" when the turn attempts none
    error: str | None = None  # one of a few fixed phrases, so that errors can be counted


def parse_response(text: str | bytes, call_format: CallFormat) -> ParsedResponse:
    """Parses an assistant turn (with an opening `<think>`, without the end-of-turn token). Any text gives a result.

    The answer is the text after the last `</think>`. In `python` it attempts calls when, stripped, it starts with `[` and ends
    with `]` (the rule of the D-CORE release); in `tags` and `qwen` when it holds `<tool_call>`. Takes linear time.

    Raises:
      UserError: an unknown `call_format`, and nothing else.
    """
    _check_format(call_format)
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    thought, answer, closed = split_thought(text)
    if not closed:
        return ParsedResponse(thought, None, "", error="a thought that is not closed")
    try:
        call_text, blocks, reply = _find_calls(answer, call_format)
    except CallSyntaxError as error:
        return ParsedResponse(thought, None, "", answer.strip(), error.reason)
    if not call_text:
        return ParsedResponse(thought, (), reply)
    try:
        calls = _parse_blocks(blocks, call_format)
        if not calls:
            raise CallSyntaxError("an empty call block")
    except CallSyntaxError as error:
        return ParsedResponse(thought, None, reply, call_text, error.reason)
    return ParsedResponse(thought, calls, reply, call_text)


def parse_calls(text: str, call_format: CallFormat) -> tuple[Call, ...]:
    """The calls of a text that holds calls and nothing else, as `render_calls` writes it. For a model's turn: `parse_response`.

    Raises:
      UserError: the text is anything else; gives the reason and, where known, the position.
    """
    _check_format(call_format)
    try:
        if call_format != "python" and not text.strip():
            return ()
        call_text, blocks, reply = _find_calls(text, call_format)
        if not call_text or reply:
            raise CallSyntaxError("text that is not a call")
        return _parse_blocks(blocks, call_format)
    except CallSyntaxError as error:
        raise UserError(f"calls in format {call_format!r} cannot be read: {error}: {text!r:.80}") from None


def render_calls(calls: Sequence[Call], call_format: CallFormat) -> str:
    """The text of calls, from which `parse_calls` returns equal calls, for any JSON arguments within `bounds`.

    A tag such as `</think>` inside a string is escaped, so that it cannot end the thought or the block. No calls are `[]` in
    `python` and the empty text in `tags` and `qwen`.

    Raises:
      UserError: an empty tool name, lone surrogates, numbers that are not finite, values beyond the bounds; names the call.
    """
    _check_format(call_format)
    for i, call in enumerate(calls):
        try:
            _render(call_format, [call])
        except CallSyntaxError as error:
            raise UserError(f"call {i} ({call.name!r:.60}) cannot be written: {error}") from None
    return _render(call_format, calls)


def split_thought(text: str) -> tuple[str | None, str, bool]:
    """Splits a turn at its last `</think>`.

    Returns:
      (thought without its tags or None, answer, whether the thought is closed). Without `</think>` the whole text is the answer,
      unless it starts with `<think>`: then it is a thought that was cut off.
    """
    before, tag, after = text.rpartition("</think>")
    body = (before if tag else after).lstrip()
    opened = body.startswith("<think>")
    if not tag and not opened:
        return None, text, True
    return body.removeprefix("<think>").strip(), after if tag else "", bool(tag)


def _find_calls(answer: str, call_format: CallFormat) -> tuple[str, list[str], str]:
    """`(call_text, blocks, reply)`; call_text is "" when no call is attempted."""
    if call_format == "python":
        answer = answer.strip()
        if not (answer.startswith("[") and answer.endswith("]") and len(answer) > 1):
            return "", [], answer
        call_text, blocks, reply = answer, [answer], ""
    else:
        call_text, blocks, reply = _find_blocks(answer)
        if call_format == "tags":
            reply = _tagged_reply(reply)
    if len(call_text) > MAX_CHARACTERS:
        raise CallSyntaxError("too long")
    return call_text, blocks, reply


def _find_blocks(answer: str) -> tuple[str, list[str], str]:
    blocks, outside = [], []
    first = at = answer.find(OPEN)
    end = 0
    while at >= 0:
        outside.append(answer[end:at])
        inside_end = answer.find(CLOSE, at)
        if inside_end < 0:
            raise CallSyntaxError("a call block that is not closed")
        blocks.append(answer[at + len(OPEN) : inside_end])
        end = inside_end + len(CLOSE)
        at = answer.find(OPEN, end)
    call_text = answer[first:end] if blocks else ""
    return call_text, blocks, "".join([*outside, answer[end:]]).strip()


def _tagged_reply(text: str) -> str:
    """The text inside `<response>`; a text without the tag as it is."""
    _, opened, rest = text.partition("<response>")
    if not opened:
        return text
    inside = rest.rpartition("</response>")
    return (inside[0] if inside[1] else rest).strip()


def _parse_blocks(blocks: list[str], call_format: CallFormat) -> tuple[Call, ...]:
    if call_format == "python":
        return parse_python_calls(blocks[0])
    if call_format == "tags":
        return parse_json_calls(blocks, "parameters", one_per_line=True)
    return parse_json_calls(blocks, "arguments", one_per_line=False)


def _render(call_format: CallFormat, calls: Sequence[Call]) -> str:
    if call_format == "python":
        return render_python_calls(calls)
    return render_tags_calls(calls) if call_format == "tags" else render_qwen_calls(calls)


def _check_format(call_format: CallFormat) -> None:
    check_choice("call format", call_format, CALL_FORMATS)
