"""This library's own JSONL, in two forms that one file may mix.

- A seed per line: `query`, `tools`, `reference` (calls), and optionally `policy`, `history` (OpenAI-style messages; a
  system message at its start is the policy), `responses` (one per call), `kind`, `answer`, and `task` to execute in.
- A conversation per line: `messages` and `tools` as `dcore_jax.data` reads them, optionally `kind` for its last turn.
  Calls are in `tool_calls` or in the content, in any of the three call formats; thoughts are dropped.
"""

from typing import Any

from dcore_jax.calls import Call, parse_response
from dcore_jax.data.files import Malformed
from dcore_jax.data.records import parse_record
from dcore_jax.data.tool_schemas import openai_tools
from dcore_jax.distill.adapters import BFCLTask, TauTask
from dcore_jax.distill.kinds import detect_kind
from dcore_jax.distill.sample import KINDS, Kind, SeedSample
from dcore_jax.distill.seeds.conversation import (
    Conversation,
    ParsedMessage,
    check_round_trip,
    exchanges_of,
    validated,
)
from dcore_jax.distill.seeds.xlam import calls_of

_RESPONSE = "<tool_response>"


def read(row: dict[str, Any], origin: str) -> Conversation | SeedSample:
    """The conversation or the seed of a line. Raises `Malformed` with the reason."""
    if "messages" in row:
        return _conversation(row, origin)
    if "query" in row and "reference" in row:
        return _sample(row, origin)
    raise Malformed("a seed needs query, tools and reference, or messages and tools")


def _conversation(row: dict[str, Any], origin: str) -> Conversation:
    record = parse_record(row, origin=origin)[0]
    if "task" in row:
        raise Malformed(
            "a task on a conversation: its state is that of one query; write a seed with reference"
        )
    messages = list(record.messages)
    policy = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    return Conversation(
        source="jsonl",
        origin=origin,
        policy=policy.strip(),
        tools=openai_tools(record.tools or ()),
        exchanges=exchanges_of(map(_parse_message, messages)),
        last_only=record.loss_turns == "last",
        kind=_kind(row),
    )


def _parse_message(message: dict[str, Any]) -> ParsedMessage:
    role, content = message["role"], message["content"]
    if role == "user" and content.lstrip().startswith(_RESPONSE):
        return ParsedMessage(
            "tool", content.strip().removeprefix(_RESPONSE).removesuffix("</tool_response>").strip()
        )
    if role == "tool":
        return ParsedMessage("tool", content)
    if role == "user":
        return ParsedMessage("user", content)
    if role == "system":
        raise Malformed("a system message after the first message")
    if "tool_calls" in message:
        calls = tuple(Call(**call["function"]) for call in message["tool_calls"])
        return ParsedMessage("assistant", parse_response(content, "python").reply, calls)
    return _parse_content(content)


def _parse_content(content: str) -> ParsedMessage:
    """An assistant message whose calls are in its content. Both tagged formats are tried: their argument keys differ."""
    formats = ("qwen", "tags") if "<tool_call>" in content else ("tags", "python")
    parsed = [parse_response(content, name) for name in formats]
    if "<tool_call>" in content:
        readable = next((found for found in parsed if found.calls), None)
        if readable is None:
            raise Malformed(f"an assistant turn that cannot be read: {parsed[0].error}")
        return ParsedMessage("assistant", readable.reply, readable.calls or ())
    if parsed[1].calls is None:
        raise Malformed(f"an assistant turn that cannot be read: {parsed[1].error}")
    return ParsedMessage("assistant", "" if parsed[1].calls else parsed[0].reply, parsed[1].calls)


def _sample(row: dict[str, Any], origin: str) -> SeedSample:
    tools, calls = openai_tools(row.get("tools") or ()), calls_of(row["reference"], "reference")
    responses, answer, kind = row.get("responses") or [], row.get("answer") or "", _kind(row)
    if not isinstance(row["query"], str) or not isinstance(row.get("policy") or "", str):
        raise Malformed("query and policy must be text")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise Malformed("responses must be a list of texts")
    if not isinstance(answer, str):
        raise Malformed("answer must be text")
    policy, history = _policy_and_history(row, origin)
    answered = bool(history) and history[-1]["role"] == "tool"
    kind = detect_kind(
        [len(calls)] if calls else [], answer, tools_offered=bool(tools), answered=answered, stated=kind
    )
    return validated(
        SeedSample(
            id="",
            source="jsonl",
            origin=origin,
            kind=kind,
            policy=policy,
            tools=tools,
            history=history,
            query=row["query"],
            reference=calls,
            responses=tuple(responses),
            answer=answer,
            task=_task(row.get("task")),
        )
    )


def _policy_and_history(row: dict[str, Any], origin: str) -> tuple[str, tuple[dict[str, Any], ...]]:
    """`(policy, history)` of a seed: everything before the query."""
    policy, history = (row.get("policy") or "").strip(), row.get("history") or []
    if not isinstance(history, list):
        raise Malformed("history must be a list of messages")
    if not history:
        return policy, ()
    record = {"messages": [*history, {"role": "assistant", "content": "?"}]}
    system, *rest = messages = parse_record(record, origin=origin)[0].messages[:-1]
    if system["role"] == "system":
        if policy:
            raise Malformed("a policy and a system message in the history: keep one of them")
        policy, messages = system["content"].strip(), tuple(rest)
    if any(message["role"] == "system" for message in messages):
        raise Malformed("a system message after the first message")
    for message in messages:
        check_round_trip([Call(**call["function"]) for call in message.get("tool_calls", ())])
    return policy, messages


def _task(value: Any) -> BFCLTask | TauTask | None:
    """The task that `execute` acts in, from `{"bfcl": {"involved_classes", "initial_config"}}` or `{"tau": {"domain"}}`."""
    if value is None:
        return None
    match value:
        case {"tau": {"domain": str(domain), **others}} if len(value) == 1 and not others:
            return TauTask(domain)
        case {"bfcl": {"involved_classes": [_, *_] as classes, **others}} if len(value) == 1:
            states: Any = others.pop("initial_config", None) or {}
            named = all(isinstance(name, str) for name in classes) and isinstance(states, dict)
            if named and not others and all(isinstance(state, dict) for state in states.values()):
                return BFCLTask(tuple(classes), states)
    raise Malformed(
        'task must be {"bfcl": {"involved_classes": [names], "initial_config": {name: state}}} or {"tau": {"domain": name}}'
    )


def _kind(row: dict[str, Any]) -> Kind | None:
    kind = row.get("kind")
    if kind is not None and kind not in KINDS:
        raise Malformed(f"kind must be one of {', '.join(KINDS)}, not {str(kind)[:40]!r}")
    return kind
