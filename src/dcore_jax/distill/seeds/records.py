"""Records of any shape that `dcore_jax.data` reads, as conversations and seed samples: calls and tools out of texts."""

import re
from typing import Any

from dcore_jax.calls import Call, parse_any_response
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.record import Record
from dcore_jax.data.tool_schemas import openai_tools, relax_required, tool_name
from dcore_jax.distill.kinds import detect_kind
from dcore_jax.distill.sample import Kind, SeedSample
from dcore_jax.distill.seeds.conversation import (
    Conversation,
    ParsedMessage,
    check_round_trip,
    exchanges_of,
    validated,
)
from dcore_jax.distill.seeds.rlla import split_instruction
from dcore_jax.distill.seeds.toolace import split_system

_RESPONSE = "<tool_response>"
# The text before it mentions the tags too: `within <tools></tools> XML tags`.
_HERMES = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)
_ABOUT_TAGS = re.compile(r"[^.\n]*<tools>[^.\n]*\.?[^\S\n]*")


def conversation_of(record: Record, source: str, kind: Kind | None = None) -> Conversation:
    """The conversation of a record; its first system turn is the policy. Raises `Malformed` with the reason."""
    policy, tools, messages = _split(record)
    names = [tool_name(tool) for tool in tools]
    return Conversation(
        source=source,
        origin=record.origin,
        policy=policy,
        tools=tools,
        exchanges=exchanges_of([_parse_message(message, names) for message in messages]),
        last_only=record.loss_turns == "last",
        kind=kind,
    )


def sample_of(record: Record, source: str, kind: Kind | None = None) -> SeedSample:
    """The sample of a record that states a reference. Raises `Malformed` with the reason."""
    assert record.reference is not None
    policy, tools, messages = _split(record)
    *history, query = messages
    if query["role"] != "user":
        raise Malformed("a reference that does not answer a user")
    if any(message["role"] == "system" for message in messages):
        raise Malformed("a system message after the first message")
    for message in history:
        check_round_trip([Call(**call["function"]) for call in message.get("tool_calls") or ()])
    calls = record.reference.calls
    detected = detect_kind(
        [len(calls)] if calls else [],
        "",
        tools_offered=bool(tools),
        answered=False,
        stated=kind or (None if calls else "irrelevant"),
    )
    return validated(
        SeedSample(
            id="",
            source=source,
            origin=record.origin,
            kind=detected,
            policy=policy,
            tools=relax_required(tools, calls),
            history=tuple(history),
            query=query["content"],
            reference=calls,
            responses=(),
        )
    )


def _split(record: Record) -> tuple[str, tuple[dict[str, Any], ...], list[dict[str, Any]]]:
    """`(policy, tools, messages after the policy)`; tools that stand in the system text are taken out of it."""
    messages = list(record.messages)
    policy = messages.pop(0)["content"].strip() if messages[0]["role"] == "system" else ""
    if record.tools:
        return policy, openai_tools(record.tools), messages
    text, listed = tools_in_system(policy)
    return text, openai_tools(listed), messages


def tools_in_system(system: str) -> tuple[str, Any]:
    """`(text without the tools, tools)` of a system text: Hermes' `<tools>` block, ToolRL's numbered list, or a JSON list.

    Raises:
      Malformed: tools that cannot be read.
    """
    if block := _HERMES.search(system):
        inside = block[1]
        try:
            listed = decode_json(inside, "not JSON")
        except Malformed:
            lines = filter(str.strip, inside.split("\n"))
            listed = [decode_json(line, "tools in the system text that are not JSON") for line in lines]
        text = _ABOUT_TAGS.sub("", system[: block.start()]).strip()
        return text, listed if isinstance(listed, list) else [listed]
    text, tools = split_instruction(system)
    return (text, tools) if tools else split_system(system)


def _parse_message(message: dict[str, Any], names: list[str]) -> ParsedMessage:
    role, content = message["role"], message.get("content") or ""
    if role == "user" and content.lstrip().startswith(_RESPONSE):
        return ParsedMessage(
            "tool", content.strip().removeprefix(_RESPONSE).removesuffix("</tool_response>").strip()
        )
    if role == "system":
        raise Malformed("a system message after the first message")
    if role != "assistant":
        return ParsedMessage("tool" if role == "tool" else "user", content)
    parsed, _ = parse_any_response(content, names)
    if parsed.calls is None:
        raise Malformed(f"an assistant turn that cannot be read: {parsed.error}")
    structured = tuple(Call(**call["function"]) for call in message.get("tool_calls") or ())
    if structured and parsed.calls:
        raise Malformed("calls in the text beside tool_calls")
    return ParsedMessage("assistant", parsed.reply, structured or parsed.calls)
