"""The notation in which a tokenizer's chat template asks for calls."""

import re
from typing import Any

from dcore_jax.calls import CALL_FORMATS, CallFormat, parse_any_response
from dcore_jax.data.chat_template import ChatTemplate, as_chat_template, render_chat
from dcore_jax.data.files import Malformed
from dcore_jax.errors import UserError, check_choice

# A template may say in a comment which notation its model was trained in, where that is not what it writes `tool_calls` in.
_STATED = re.compile(r"\{#-?\s*calls:\s*(\w+)")
_NAME, _PARAMETER, _VALUE = "probe_tool", "probe_parameter", "probe value"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {_PARAMETER: {"type": "string"}},
            "required": [_PARAMETER],
        },
    },
}
_CALL = {
    "id": "probe12345",
    "type": "function",
    "function": {"name": _NAME, "arguments": {_PARAMETER: _VALUE}},
}


_USER = {"role": "user", "content": "probe"}


def shows_tools(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template writes the tools that it is given, so that the model can see them.

    Args:
      tokenizer: with a chat template, or a `ChatTemplate`.
    """
    return _NAME in _probe_prompt(as_chat_template(tokenizer))


def calls_in_content(tokenizer: Any) -> bool:
    """Whether the template states its notation in a comment: then calls of the history belong in the content, written in it.

    Args:
      tokenizer: with a chat template, or a `ChatTemplate`.
    """
    return bool(
        _STATED.search(str(getattr(as_chat_template(tokenizer).tokenizer, "chat_template", None) or ""))
    )


def template_notation(tokenizer: Any) -> CallFormat | None:
    """The notation in which the tokenizer's chat template writes a call when it is given tools; None where it shows no tools.

    A comment `{# calls: python #}` in the template decides before what it writes.

    Args:
      tokenizer: with a chat template, or a `ChatTemplate`.

    Raises:
      UserError: the template writes calls in a notation that no response can be scored in, or states an unknown one.
    """
    template = as_chat_template(tokenizer)
    if stated := _STATED.search(str(getattr(template.tokenizer, "chat_template", None) or "")):
        check_choice("notation that the chat template states", stated[1], CALL_FORMATS)
        return stated[1]
    prompt = _probe_prompt(template)
    if _NAME not in prompt:
        return None
    written = ""
    for content in ("", None):
        turn = {"role": "assistant", "content": content, "tool_calls": [_CALL]}
        try:
            whole = render_chat(template, [_USER, turn], [_TOOL])
        except Malformed:
            continue
        written = whole[len(prompt) :] if whole.startswith(prompt) else ""
        if _VALUE in written:
            break
    found = _notation_of(written, template.tokenizer)
    if _VALUE in written and found is None:
        raise UserError(
            "the chat template writes calls in a notation that cannot be read; give the one that responses are scored in with "
            "--reward.call-format"
        )
    return found


def _probe_prompt(template: ChatTemplate) -> str:
    """A prompt with one tool; empty where the template refuses it."""
    try:
        return render_chat(template, [_USER], [_TOOL], add_generation_prompt=True)
    except Malformed:
        return ""


def _notation_of(written: str, tokenizer: Any) -> CallFormat | None:
    """The notation of a rendered turn, without the special tokens around it."""
    for token in sorted(
        set(tokenizer.all_special_tokens) - {"[TOOL_CALLS]", "<|python_tag|>"}, key=len, reverse=True
    ):
        written = written.replace(token, "\n")
    parsed, notation = parse_any_response(written.strip())
    if parsed.calls and parsed.calls[0].name == _NAME and parsed.calls[0].arguments == {_PARAMETER: _VALUE}:
        return notation
    return None
