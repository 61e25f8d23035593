"""Our own plain JSONL, in two forms that one file may mix.

- A seed a line: `query`, `tools`, `reference` (calls), and optionally `policy`, `history` (OpenAI-style messages),
  `responses` (one a call), `kind`, `answer`.
- A conversation a line: `messages` and `tools` as `dcore_jax.data` reads them, optionally `kind` for its last turn.
  Calls stand in `tool_calls` or in the content, in any of the three call formats; thinking is left out.
"""

from typing import Any

from dcore_jax.calls import Call, parse_response
from dcore_jax.data.files import Malformed
from dcore_jax.data.records import parse_record
from dcore_jax.distill.kinds import detect_kind
from dcore_jax.distill.sample import KINDS, Kind, SeedSample
from dcore_jax.distill.seeds.conversation import Conversation, Said, checked, exchanges_of
from dcore_jax.distill.seeds.schemas import openai_tools
from dcore_jax.distill.seeds.xlam import calls_of

_RESPONSE = "<tool_response>"


def read(row: dict[str, Any], origin: str) -> Conversation | SeedSample:
    """A line of either form. Raises `Malformed` with the reason."""
    if "messages" in row:
        return _conversation(row, origin)
    if "query" in row and "reference" in row:
        return _sample(row, origin)
    raise Malformed("a seed needs query, tools and reference, or messages and tools")


def _conversation(row: dict[str, Any], origin: str) -> Conversation:
    record = parse_record(row, origin=origin)[0]
    messages = list(record.messages)
    policy = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    return Conversation(
        source="jsonl",
        origin=origin,
        policy=policy.strip(),
        tools=openai_tools(record.tools or ()),
        exchanges=exchanges_of(map(_said, messages)),
        last_only=record.loss_turns == "last",
        kind=_kind(row),
    )


def _said(message: dict[str, Any]) -> Said:
    role, content = message["role"], message["content"]
    if role == "user" and content.lstrip().startswith(_RESPONSE):
        return Said("tool", content.strip().removeprefix(_RESPONSE).removesuffix("</tool_response>").strip())
    if role == "tool":
        return Said("tool", content)
    if role == "user":
        return Said("user", content)
    if role == "system":
        raise Malformed("a system message after the first message")
    if "tool_calls" in message:
        calls = tuple(Call(**call["function"]) for call in message["tool_calls"])
        return Said("assistant", parse_response(content, "python").reply, calls)
    return _read_content(content)


def _read_content(content: str) -> Said:
    """Both tagged formats are tried: they differ in the name of the arguments' key."""
    formats = ("qwen", "tags") if "<tool_call>" in content else ("tags", "python")
    parsed = [parse_response(content, name) for name in formats]
    if "<tool_call>" in content:
        readable = next((found for found in parsed if found.calls), None)
        if readable is None:
            raise Malformed(f"an assistant turn that cannot be read: {parsed[0].error}")
        return Said("assistant", readable.reply, readable.calls or ())
    if parsed[1].calls is None:
        raise Malformed(f"an assistant turn that cannot be read: {parsed[1].error}")
    return Said("assistant", "" if parsed[1].calls else parsed[0].reply, parsed[1].calls)


def _sample(row: dict[str, Any], origin: str) -> SeedSample:
    tools, calls = openai_tools(row.get("tools") or ()), calls_of(row["reference"], "reference")
    history: list[Any] = list(row.get("history") or ())
    responses, answer, kind = row.get("responses") or (), row.get("answer") or "", _kind(row)
    if not isinstance(row["query"], str) or not isinstance(row.get("policy") or "", str):
        raise Malformed("query and policy must be text")
    if not isinstance(answer, str) or not all(isinstance(text, str) for text in responses):
        raise Malformed("answer and each of responses must be text")
    before = history[-1] if history else None
    answered = isinstance(before, dict) and before.get("role") == "tool"
    kind = detect_kind(
        [len(calls)] if calls else [], answer, tools_offered=bool(tools), answered=answered, stated=kind
    )
    if history:
        record = {"messages": [*history, {"role": "assistant", "content": "?"}]}
        history = list(parse_record(record, origin=origin)[0].messages[:-1])
    return checked(
        SeedSample(
            id="",
            source="jsonl",
            origin=origin,
            kind=kind,
            policy=(row.get("policy") or "").strip(),
            tools=tools,
            history=tuple(history),
            query=row["query"],
            reference=calls,
            responses=tuple(responses),
            answer=answer,
        )
    )


def _kind(row: dict[str, Any]) -> Kind | None:
    kind = row.get("kind")
    if kind is not None and kind not in KINDS:
        raise Malformed(f"kind must be one of {', '.join(KINDS)}, not {str(kind)[:40]!r}")
    return kind
