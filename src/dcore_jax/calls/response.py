"""The interface of all call formats: parses an assistant turn into thought, calls and reply, and renders calls."""

from collections.abc import Collection, Sequence

from dcore_jax.calls.blocks import CLOSE, OPEN, find_blocks
from dcore_jax.calls.bounds import MAX_CHARACTERS, CallSyntaxError
from dcore_jax.calls.call import Call
from dcore_jax.calls.json_format import (
    parse_bare_json_calls,
    parse_json_calls,
    render_bare_json_calls,
    render_qwen_calls,
    render_tags_calls,
)
from dcore_jax.calls.notation import (
    ANOTHER_NOTATION,
    attempts_call,
    attempts_json_calls,
    attempts_python_calls,
    read_answer,
)
from dcore_jax.calls.parsed import CALL_FORMATS, CallFormat, ParsedResponse
from dcore_jax.calls.python_format import parse_python_calls, render_python_calls
from dcore_jax.calls.thought import CLOSE_THOUGHT, OPEN_THOUGHT, thought_end
from dcore_jax.errors import UserError, check_choice


def parse_response(text: str | bytes, call_format: CallFormat) -> ParsedResponse:
    """Parses an assistant turn (with an opening `<think>`, without the end-of-turn token). Any text gives a result.

    The answer is the text after the thought (`split_thought`). In `python` it attempts calls when, stripped, it starts with `[`
    and ends with `]` (the rule of the D-CORE release) or starts like a list of calls that was cut off; in `tags` and `qwen` when
    it holds `<tool_call>`; in `json` when it starts like such an object. An answer that attempts calls in another notation is no
    answer without calls: its `calls` are None, and `error` says so. Takes linear time.

    Raises:
      UserError: an unknown `call_format`, and nothing else.
    """
    _check_format(call_format)
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    thought, answer, closed = split_thought(text)
    if not closed:
        return ParsedResponse(thought, None, "", error="a thought that is not closed")
    return _parse_answer(answer, call_format)._replace(thought=thought)


def parse_any_response(text: str, names: Collection[str] = ()) -> tuple[ParsedResponse, CallFormat | None]:
    """Parses a turn whose notation is not known, as data are read; see `notation.py` for what is recognised.

    Args:
      text: a turn, with or without a thought.
      names: tools that are offered; a list of Python calls inside other text is recognised by them.

    Returns:
      (the turn, its notation). The notation is None where the turn attempts no call, and where its calls are read but stand in a
      notation that no response can be scored in (several objects with "arguments" in one block).
    """
    thought, answer, closed = split_thought(text)
    if not closed:
        return ParsedResponse(thought, None, "", error="a thought that is not closed"), None
    found, notation = read_answer(answer, names)
    if found.calls is None or notation is not None or found.calls:
        return found._replace(thought=thought), notation
    return found._replace(thought=thought, reply=_tagged_reply(found.reply)), None


def parse_calls(text: str, call_format: CallFormat) -> tuple[Call, ...]:
    """The calls of a text that holds calls and nothing else, as `render_calls` writes it. For a model's turn: `parse_response`.

    Raises:
      UserError: the text is anything else; gives the reason and, where known, the position.
    """
    _check_format(call_format)
    try:
        if text.strip() == {"python": "[]", "json": "[]"}.get(call_format, ""):
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
    """Splits a turn where its thought ends (`blocks.thought_end`): at the last `</think>` that no call's argument holds.

    Returns:
      (thought without its tags or None, answer, whether the thought is closed). Without such a `</think>` the whole text is the
      answer, unless it starts with `<think>`: then it is a thought that was cut off.
    """
    end = thought_end(text)
    if end is None:
        body = text.lstrip()
        if not body.startswith(OPEN_THOUGHT):
            return None, text, True
        return body.removeprefix(OPEN_THOUGHT).strip(), "", False
    thought = text[:end].lstrip().removeprefix(OPEN_THOUGHT)
    return thought.strip(), text[end + len(CLOSE_THOUGHT) :], True


def _parse_answer(answer: str, call_format: CallFormat) -> ParsedResponse:
    """What `parse_response` finds after the thought."""
    try:
        call_text, blocks, reply = _find_calls(answer, call_format)
    except CallSyntaxError as error:
        return ParsedResponse(None, None, "", answer.strip(), error.reason)
    if not call_text:
        if attempts_call(answer):
            return ParsedResponse(None, None, answer.strip(), answer.strip(), ANOTHER_NOTATION)
        return ParsedResponse(None, (), reply)
    try:
        calls = _parse_blocks(blocks, call_format)
        if not calls:
            raise CallSyntaxError("an empty call block")
    except CallSyntaxError as error:
        return ParsedResponse(None, None, reply, call_text, error.reason)
    return ParsedResponse(None, calls, reply, call_text)


def _find_calls(answer: str, call_format: CallFormat) -> tuple[str, list[str], str]:
    """`(call_text, blocks, reply)`; call_text is "" when no call is attempted in this format."""
    if call_format in ("python", "json"):
        answer = answer.strip()
        attempted = attempts_python_calls(answer) if call_format == "python" else attempts_json_calls(answer)
        if not attempted:
            return "", [], answer
        call_text, blocks, reply = answer, [answer], ""
    else:
        spans = find_blocks(answer)
        if not spans:
            if CLOSE in answer:
                raise CallSyntaxError("a closing tag without a call block")
            call_text, blocks, reply = "", [], answer.strip()
        else:
            first, end = spans[0][0] - len(OPEN), spans[-1][1] + len(CLOSE)
            call_text, blocks = answer[first:end], [answer[start:stop] for start, stop in spans]
            edges = [0, *(edge for start, stop in spans for edge in (start - len(OPEN), stop + len(CLOSE)))]
            outside = zip(edges[::2], [*edges[1::2], len(answer)])
            reply = "".join(answer[start:stop] for start, stop in outside).strip()
        if call_format == "tags":
            reply = _tagged_reply(reply)
    if len(call_text) > MAX_CHARACTERS:
        raise CallSyntaxError("too long")
    return call_text, blocks, reply


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
    if call_format == "json":
        return parse_bare_json_calls(blocks[0])
    if call_format == "tags":
        return parse_json_calls(blocks, "parameters", one_per_line=True)
    return parse_json_calls(blocks, "arguments", one_per_line=False)


def _render(call_format: CallFormat, calls: Sequence[Call]) -> str:
    if call_format == "python":
        return render_python_calls(calls)
    if call_format == "json":
        return render_bare_json_calls(calls)
    return render_tags_calls(calls) if call_format == "tags" else render_qwen_calls(calls)


def _check_format(call_format: CallFormat) -> None:
    check_choice("call format", call_format, CALL_FORMATS)
