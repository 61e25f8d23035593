"""Chat completions: messages and tools into a prompt, a turn into a message with calls."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dcore_jax.calls import Call, parse_any_response, parse_response, render_calls, split_thought
from dcore_jax.calls.thought import OPEN_THOUGHT
from dcore_jax.data.chat_template import render_chat
from dcore_jax.data.malformed import Malformed
from dcore_jax.data.messages import conversation
from dcore_jax.data.notation import calls_in_content
from dcore_jax.data.tool_schemas import openai_tools, tool_name
from dcore_jax.player.model import PlayableModel
from dcore_jax.serve.requests import BadRequest

_PROBE = "PROBE"
Message = dict[str, Any]


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation ready to be continued."""

    text: str
    begun: str  # of the model's turn, what the prompt holds already: `<think>`, or the beginning of a forced call
    tools: tuple[Mapping[str, Any], ...]  # that may be called; () for none
    forced: str = ""  # the function that must be called


def chat_prompt(body: Mapping[str, Any], model: PlayableModel) -> ChatPrompt:
    """The prompt of a body's `messages`, `tools` and `tool_choice`.

    `required`, and a function's name, begin the turn with a call: the model writes the rest of it.

    Raises:
      BadRequest: messages or tools that cannot be read, or that the chat template refuses.
    """
    if not isinstance(body.get("messages"), list):
        raise BadRequest("messages must be a list of messages", param="messages")
    try:
        messages, _ = conversation(body["messages"], "messages")
    except Malformed as error:
        raise BadRequest(f"messages: {error}", param="messages") from None
    try:
        tools = openai_tools(body.get("tools") or [])
    except Malformed as error:
        raise BadRequest(f"tools: {error}", param="tools") from None
    choice = _tool_choice(body.get("tool_choice"), tools)
    shown = () if choice == "none" else tools
    kwargs = body.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise BadRequest("chat_template_kwargs must be an object", param="chat_template_kwargs")
    template = replace(model.template, options={**model.template.options, **kwargs})
    if calls_in_content(template):
        messages = [_with_calls_in_content(message, model.notation or "python") for message in messages]
    try:
        text = render_chat(template, messages, shown or None, add_generation_prompt=True)
    except Malformed as error:
        raise BadRequest(str(error), param="messages") from None
    begun = OPEN_THOUGHT + "\n" if text.rstrip().endswith(OPEN_THOUGHT) else ""
    forced = choice.partition(":")[2]
    if choice not in ("auto", "none"):
        begun = _beginning_of_call(choice, model.notation or "qwen")
        text += begun
    return ChatPrompt(text, begun, shown, forced)


def chat_message(text: str, prompt: ChatPrompt, notation: str | None) -> Message:
    """The assistant's message of a whole turn: thought, content and calls apart.

    Calls that cannot be read, or are not the function that was asked for, stay in the content, as the model wrote them.
    """
    if not prompt.tools:
        thought, answer, closed = split_thought(text)
        return _message(thought, answer.strip() if closed else "", ())
    if notation is not None:
        parsed = parse_response(text, notation)
    else:
        parsed, _ = parse_any_response(text, [tool_name(dict(tool)) for tool in prompt.tools])
    missed = prompt.forced and prompt.forced not in {call.name for call in parsed.calls or ()}
    if parsed.calls is None or missed:
        thought, answer, closed = split_thought(text)
        return _message(thought, answer.strip() if closed else "", ())
    return _message(parsed.thought, parsed.reply, parsed.calls)


def _message(thought: str | None, content: str, calls: Sequence[Call]) -> Message:
    message: Message = {"role": "assistant", "content": content if content or not calls else None}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(dict(call.arguments), ensure_ascii=False),
                },
            }
            for call in calls
        ]
    return message


def _tool_choice(value: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """auto, none, required, or `function:NAME`."""
    names = [tool_name(dict(tool)) for tool in tools]
    if value is None or value == "auto":
        return "auto"
    if value == "none":
        return "none"
    if value == "required":
        if not names:
            raise BadRequest("tool_choice is required, but there are no tools", param="tool_choice")
        return f"function:{names[0]}" if len(names) == 1 else "required"
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise BadRequest("tool_choice must be auto, none, required, or name a function", param="tool_choice")
    if name not in names:
        raise BadRequest(
            f"tool_choice names {name[:60]!r}, which is not among the tools", param="tool_choice"
        )
    return f"function:{name}"


def _beginning_of_call(choice: str, notation: str) -> str:
    """The text of a call up to its name, or up to its arguments where the name is chosen."""
    name = choice.partition(":")[2]
    whole = render_calls([Call(name or _PROBE, {_PROBE: 0})], notation)
    if not name:
        return whole[: whole.index(_PROBE)]
    argument = whole.rindex(_PROBE)
    # JSON up to the colon before the arguments: a space and what follows it are often one token.
    return whole[:argument] if notation == "python" else whole[: whole.rindex(": {", 0, argument) + 1]


def _with_calls_in_content(message: Message, notation: str) -> Message:
    """A message whose calls are text, for templates of models that were trained so."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    listed = [Call(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**kept, "content": (message.get("content") or "") + render_calls(listed, notation)}
