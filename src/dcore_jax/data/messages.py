"""Messages in the dialects of chat data, as OpenAI writes them.

Read: roles and speakers of every common name; text in `content` or `value`, as one text or in parts; `tool_calls` with arguments
as objects or JSON text, bare or inside `function`; the older `function_call`; thoughts under the names of several servers; tool
results of any JSON value, written as JSON text; turns marked as not to be trained on. What a template tells apart (null, absent,
empty) stays as it is.
"""

import contextlib
import json
import sys
from typing import Any

from dcore_jax.calls import Call, parse_any_response
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.record import Message, check_texts, check_values

# Names of the four roles in the data sets. Calls as a speaker of their own (`function_call`) are handled in `conversation`.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "tool_result", "function_response"), "tool"),
}  # fmt: skip
_CALLERS = ("function_call", "tool_call", "function-call", "tool_calls")
_WEIGHTS = ("weight", "train", "trainable", "loss", "loss_mask")
_SPEAKER, _TEXT = ("role", "from", "speaker"), ("content", "value", "text")
_THOUGHTS = ("reasoning", "thinking", "thought")  # names of reasoning_content elsewhere
_TEXT_PARTS = ("text", "input_text", "output_text")


def conversation(value: Any, name: str) -> tuple[list[Message], tuple[float, ...] | None]:
    """The messages of a list or of its JSON text, and their weights; None where all are 1.

    Args:
      name: of the field, for the reason.

    Raises:
      Malformed: with the reason.
    """
    value = decode_json(value, f"{name} is a string that is not JSON")
    if not isinstance(value, list):
        raise Malformed(f"{name} must be a list, not {type(value).__name__}")
    if not value:
        raise Malformed(f"empty {name}")
    messages: list[Message] = []
    weights: list[float] = []
    for item in value:
        message, weight = _message(item)
        calls = message.pop("_caller", False)
        if calls and messages and weights[-1] == weight and _goes_on(messages[-1], message):
            turn = messages[-1]  # words and calls of one turn, each a message of its own
            turn["tool_calls"] = [*(turn.get("tool_calls") or ()), *message["tool_calls"]]
            turn["_called"] = True
            continue
        if calls:
            message["_called"] = True
        messages.append(message)
        weights.append(weight)
    for message in messages:
        message.pop("_called", None)
    return messages, tuple(weights) if any(weight != 1 for weight in weights) else None


def message_of(role: str, content: Any) -> Message:
    """A message of text, checked as those of a conversation are."""
    return _message({"role": role, "content": content})[0]


def call_message(calls: list[Call] | tuple[Call, ...], content: str = "") -> Message:
    """An assistant message that makes calls."""
    listed = [
        {"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": listed}


def tool_call(value: Any) -> dict[str, Any]:
    """OpenAI's `{"function": {"name", "arguments"}}` from that, the bare inner object or JSON text; arguments become a dict.

    Raises:
      Malformed: something else, or arguments that no response could equal.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = decode_json(value, "a tool call is a string that is not JSON")
    if not isinstance(value, dict):
        raise Malformed(f"a tool call must be an object, not {type(value).__name__}")
    value = {key: item for key, item in value.items() if item is not None}
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Malformed("a tool call without a name")
    given = function.get("arguments", function.get("parameters"))
    arguments = {} if given is None or given == "" else given
    for _ in range(2):  # some programs write the JSON text as JSON once more
        arguments = decode_json(arguments, "tool call arguments is a string that is not JSON")
    if not isinstance(arguments, dict):
        raise Malformed(f"tool call arguments must be an object, not {type(arguments).__name__}")
    check_values(arguments, "tool call arguments")
    kept = {
        key: item for key, item in value.items() if key not in ("function", "name", "arguments", "parameters")
    }
    check_texts([name, *kept.values()], "a tool call")
    return {**kept, "type": "function", "function": {"name": name, "arguments": arguments}}


def _message(value: Any) -> tuple[Message, float]:
    if not isinstance(value, dict):
        raise Malformed(f"a message must be an object, not {type(value).__name__}")
    speaker = next((value[key] for key in _SPEAKER if value.get(key) is not None), None)
    caller = speaker in _CALLERS
    role = "assistant" if caller else _ROLES.get(str(speaker).lower())
    if role is None:
        raise Malformed(f"unknown role {str(speaker)[:40]!r}")
    weight = _weight(value, role)
    message = {key: item for key, item in value.items() if key not in (*_WEIGHTS, *_SPEAKER, "value", "text")}
    message = {"role": role, **message}
    for key in _TEXT:
        if key in value and (value[key] is not None or key == "content"):
            message["content"] = _tool_result(value[key]) if role == "tool" else _text(value[key])
            break
    if role == "assistant":
        _name_thought(message)
    if caller:
        _calls_of_text(message)
    if value.get("function_call") is not None:
        if value.get("tool_calls"):
            raise Malformed("a function_call beside tool_calls")
        message["tool_calls"] = [value["function_call"]]
    message.pop("function_call", None)
    if isinstance(message.get("tool_calls"), str):
        message["tool_calls"] = decode_json(message["tool_calls"], "tool_calls is a string that is not JSON")
    if isinstance(message.get("tool_calls"), dict):
        message["tool_calls"] = [message["tool_calls"]]
    if message.get("tool_calls") is not None:
        if not isinstance(message["tool_calls"], list):
            raise Malformed(f"tool_calls must be a list, not {type(message['tool_calls']).__name__}")
        message["tool_calls"] = [tool_call(call) for call in message["tool_calls"]]
        if message["tool_calls"] and role != "assistant":
            raise Malformed(f"tool calls in a {role} message")
    check_texts(message.values(), _named(role))
    _check_content(message)
    return ({**message, "_caller": True} if caller else message), weight


def _check_content(message: Message) -> None:
    role, calls, content = message["role"], message.get("tool_calls"), message.get("content")
    if content is None and not calls:
        raise Malformed(f"{_named(role)} without content")
    if not isinstance(content, str | None):
        raise Malformed(f"content of {_named(role)} must be text, not {type(content).__name__}")
    if not isinstance(message.get("reasoning_content") or "", str):
        raise Malformed("reasoning_content must be text")
    if role == "assistant" and not (content or "").strip() and not calls:
        raise Malformed("an assistant turn without content or tool calls")


def _text(content: Any) -> Any:
    """The text of content that comes in parts; other content as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise Malformed(f"a content part of type {str(kind)[:40]!r}, of which only text can be read")
        texts.append(text)
    return "".join(texts)


def _tool_result(content: Any) -> Any:
    """The text of a tool's result; an object, a list or a number as JSON text."""
    parts = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in _TEXT_PARTS for part in content
    )
    if content is None or isinstance(content, str) or (parts and content):
        return _text(content)
    check_values(content, "content of a tool message", limit=sys.maxsize)
    return json.dumps(content, ensure_ascii=False)


def _name_thought(message: Message) -> None:
    """Puts a thought under the name that templates read."""
    for key in _THOUGHTS:
        thought = message.get(key)
        if isinstance(thought, bool):  # a switch, and no thought
            continue
        message.pop(key, None)
        if thought is None or thought == "":
            continue
        if message.get("reasoning_content") not in (None, "", thought):
            raise Malformed(f"{key} beside another reasoning_content")
        message["reasoning_content"] = thought


def _goes_on(before: Message, calls: Message) -> bool:
    """Whether the calls of a speaker `function_call` belong to the turn of the message before."""
    if before["role"] != "assistant" or calls["content"] or calls.get("reasoning_content"):
        return False
    return before.get("_called", False) or not before.get("tool_calls")


def _named(role: str) -> str:
    return f"{'an' if role == 'assistant' else 'a'} {role} message"


def _calls_of_text(message: Message) -> None:
    """Reads the calls of a speaker `function_call`: JSON objects, or any notation of calls."""
    content = message.get("content")
    listed = content
    if isinstance(content, str):
        with contextlib.suppress(Malformed):
            listed = decode_json(content, "not JSON")
    if isinstance(listed, dict | list):
        message["tool_calls"] = listed if isinstance(listed, list) else [listed]
    elif isinstance(content, str):
        parsed, _ = parse_any_response(content)
        if not parsed.calls:
            raise Malformed(f"a function_call message that cannot be read: {parsed.error or 'no call in it'}")
        message |= call_message(parsed.calls, parsed.reply)
        if parsed.thought:
            message["reasoning_content"] = parsed.thought
        return
    message["content"] = ""


def _weight(value: Message, role: str) -> float:
    """The weight of a message in the loss, by whichever of the usual names."""
    found = {key: value[key] for key in _WEIGHTS if value.get(key) is not None}
    if not found:
        return 1.0
    weights = set()
    for key, given in found.items():
        if not isinstance(given, bool | int | float) or not 0 <= given <= 1:
            raise Malformed(f"{key} of a message must be true, false or a number in [0, 1]")
        weights.add(float(given))
    if len(weights) > 1:
        raise Malformed(f"{' and '.join(sorted(found))} of a message contradict each other")
    weight = weights.pop()
    if role != "assistant":
        if weight and "weight" not in found:
            raise Malformed(f"a {role} message marked to be trained on, which is not supported")
        return 1.0
    return weight
