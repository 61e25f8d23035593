"""Conversations that are no OpenAI messages: `conversations` (ShareGPT and those after it) and glaive's `chat`."""

import json
import re
from typing import Any

from dcore_jax.calls import parse_any_response
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.messages import call_message, conversation, message_of
from dcore_jax.data.record import Message, check_texts
from dcore_jax.data.tool_schemas import openai_tools

_GLAIVE_SPEAKER = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_GLAIVE_OFFER = re.compile(r"\s*with access to the following functions?\. Use them if required\s*-?\s*")


def conversations_of(row: dict[str, Any]) -> list[tuple[list[Message], tuple[float, ...] | None]]:
    """The conversations of a line, each with its weights; `single_conv_last_idx` lists the last message of each (D-CORE).

    Raises:
      Malformed: with the reason.
    """
    turns = decode_json(row["conversations"], "conversations is a string that is not JSON")
    if not isinstance(turns, list):
        raise Malformed(f"conversations must be a list, not {type(turns).__name__}")
    if not turns:
        raise Malformed("empty conversations")
    if "single_conv_last_idx" not in row:
        return [conversation(turns, "conversations")]
    ends = decode_json(row["single_conv_last_idx"], "single_conv_last_idx is a string that is not JSON")
    if not isinstance(ends, list):
        raise Malformed(f"single_conv_last_idx must be a list, not {type(ends).__name__}")
    if not ends or any(type(end) is not int for end in ends) or ends != sorted(set(ends)):
        raise Malformed("single_conv_last_idx must be a rising list of integers")
    if ends[0] < 0 or ends[-1] != len(turns) - 1:
        raise Malformed("single_conv_last_idx must end at the last message")
    starts = [0, *(end + 1 for end in ends[:-1])]
    found = [conversation(turns[start : end + 1], "conversations") for start, end in zip(starts, ends)]
    if any(messages[-1]["role"] != "assistant" for messages, _ in found):
        raise Malformed("a conversation that does not end with an assistant turn")
    return found


def glaive_conversation(row: dict[str, Any]) -> tuple[list[Message], None]:
    """The messages of glaive's `system` and `chat`, with its calls as `tool_calls`. Raises `Malformed`."""
    chat = row["chat"]
    if not isinstance(chat, str) or not isinstance(row.get("system") or "", str):
        raise Malformed("a glaive record needs system and chat, both text")
    check_texts([chat, row.get("system")], "a glaive record")
    speakers = list(_GLAIVE_SPEAKER.finditer(chat))
    if not speakers or chat[: speakers[0].start()].strip():
        raise Malformed("a glaive chat that does not start with a speaker")
    messages: list[Message] = []
    policy = _glaive_policy(row.get("system") or "")
    if policy:
        messages.append(message_of("system", policy))
    for speaker, following in zip(speakers, [*speakers[1:], None]):
        text = chat[speaker.end() : following.start() if following else len(chat)]
        text = text.replace("<|endoftext|>", "").strip()
        role = _GLAIVE_ROLES[speaker[1]]
        parsed = parse_any_response(text)[0] if role == "assistant" else None
        if parsed is not None and parsed.calls is None:
            raise Malformed(f"an assistant turn that cannot be read: {parsed.error}")
        if parsed is not None and parsed.calls:
            messages.append(call_message(parsed.calls, parsed.reply))
        else:
            messages.append(message_of(role, text))
    return messages, None


def glaive_tools(row: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """The functions that stand as JSON objects in a glaive system text; None without any."""
    return openai_tools(_glaive_functions(row.get("system") or "")[1]) or None


def _glaive_policy(system: str) -> str:
    text, functions = _glaive_functions(system)
    text = text.removeprefix("SYSTEM:").strip()
    return _GLAIVE_OFFER.sub("", text).strip() if functions else text


def _glaive_functions(system: str) -> tuple[str, list[Any]]:
    """`(text before the functions, functions)`."""
    functions: list[Any] = []
    decoder = json.JSONDecoder()
    start = at = system.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(system, at)
        except (ValueError, RecursionError):
            raise Malformed("functions in the system text that are not JSON") from None
        functions.append(value)
        at = system.find("{", end)
    return (system[:start] if functions else system), functions
