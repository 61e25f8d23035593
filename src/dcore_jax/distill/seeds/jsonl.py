"""Rows of any shape that `dcore_jax.data` reads (docs/data.md), and this library's own seeds; one file may mix them.

- A seed per line: `query`, `tools`, `reference` (calls), and optionally `policy`, `history` (OpenAI-style messages; a
  system message at its start is the policy), `responses` (one per call), `kind`, `answer`, and `task` to execute in.
- Every other shape: a conversation, or a prompt with its reference; optionally `kind` for the last turn. Calls are in
  `tool_calls` or in the content, in any notation; thoughts are dropped.
"""

from typing import Any

from dcore_jax.calls import Call, render_calls
from dcore_jax.data.files import Malformed
from dcore_jax.data.records import parse_any_record, parse_record
from dcore_jax.data.shapes import shape_of
from dcore_jax.data.tool_schemas import openai_tools
from dcore_jax.distill.adapters import BFCLTask, TauTask
from dcore_jax.distill.kinds import detect_kind
from dcore_jax.distill.sample import KINDS, Kind, SeedSample
from dcore_jax.distill.seeds import rlla, xlam
from dcore_jax.distill.seeds.conversation import (
    Conversation,
    check_round_trip,
    validated,
)
from dcore_jax.distill.seeds.records import conversation_of, sample_of
from dcore_jax.distill.seeds.xlam import calls_of


def read(row: dict[str, Any], origin: str) -> list[Conversation | SeedSample]:
    """The conversations (several of a packed D-CORE line) or the seed of a line. Raises `Malformed` with the reason."""
    if shape_of(row) == "conversations":
        records = parse_any_record(row, origin=origin)
        _check_no_task(row)
        last = len(records) - 1
        return [
            conversation_of(record, "jsonl", _kind(row) if i == last else None)
            for i, record in enumerate(records)
        ]
    return [_read_one(row, origin)]


def _read_one(row: dict[str, Any], origin: str) -> Conversation | SeedSample:
    shape = shape_of(row)
    if shape == "seed":
        return _sample(row, origin)
    if shape == "xlam":
        return xlam.conversation(row, origin)
    if shape == "toolrl" or (shape == "verl" and "<user>" in str(row["prompt"])):
        return rlla.conversation(row, origin)
    record = parse_any_record(row, origin=origin)[0]
    _check_no_task(row)
    if record.reference is None:
        return conversation_of(record, "jsonl", _kind(row))
    if shape == "api_bank":
        turn = render_calls(record.reference.calls, "tags")
        return rlla.conversation({"instruction": row["system"], "input": row["user"], "output": turn}, origin)
    return sample_of(record, "jsonl", _kind(row))


def _check_no_task(row: dict[str, Any]) -> None:
    if not isinstance(row.get("task", ""), str):  # a text is a column of the data set's own, as in Hermes
        raise Malformed(
            "a task on a conversation: its state is that of one query; write a seed with reference"
        )


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
