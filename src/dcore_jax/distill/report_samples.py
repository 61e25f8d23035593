"""Single samples as the report shows them: plain values for the page's template."""

import json
from collections.abc import Mapping
from typing import Any

from dcore_jax.calls import calls_equal, render_calls, split_thought
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.distill.tally import composed_turn
from dcore_jax.distill.verify import written_calls
from dcore_jax.report import shorten


def rejected_view(outcome: Outcome) -> dict[str, str]:
    """A rejected sample: what was asked, its reference, and what the model wrote."""
    sample = outcome.sample
    return {
        "origin": sample.origin,
        "id": sample.id,
        "query": shorten(sample.query),
        "reference": shorten(render_calls(sample.reference, "python")) if sample.reference else "",
        "subtasks": "\n".join(f"{i}. {text}" for i, text in enumerate(outcome.subtasks, 1)),
        "model_text": shorten(outcome.last_text),
    }


def accepted_view(outcome: Outcome) -> dict[str, Any]:
    """An accepted sample: policy, tools, history, query, subtasks and composed turns."""
    sample = outcome.sample
    history = [
        (str(message.get("role")), shorten(_message_text(message)))
        for message in sample.history
        if message.get("role") != "system"
    ]
    return {
        "sample": sample,
        "policy": shorten(sample.policy),
        "tools": [tool["function"]["name"] for tool in sample.tools],
        "schemas": shorten(json.dumps(list(sample.tools), indent=1, ensure_ascii=False)),
        "history": history,
        "query": shorten(sample.query),
        "subtasks": outcome.subtasks,
        "turns": _turn_views(outcome),
    }


def _turn_views(outcome: Outcome) -> list[dict[str, Any]]:
    """The composed turns, each with its thought, its calls or text, and the tools' responses.

    The responses to a turn are the tool messages before the next record's last turn. Those to the last turn are only in the
    seed, for calls of the reference.
    """
    turns = []
    for number, record in enumerate(outcome.records):
        thought, rest, _ = split_thought(composed_turn(record))
        text_after = rest.strip()
        if calls := _message_text({**record["messages"][-1], "content": ""}):
            text_after = f"{text_after}\n{calls}".strip()
        last = number == len(outcome.records) - 1
        if not last:
            responses = _trailing_responses(outcome.records[number + 1])
        else:
            responses = _recorded_responses(outcome.sample, composed_turn(record), number)
        turns.append(
            {
                "thought": shorten(thought or ""),
                "text": shorten(text_after),
                "calls": bool(outcome.sample.reference),
                "responses": [shorten(text) for text in responses if text],
            }
        )
    return turns


def _recorded_responses(sample: SeedSample, turn: str, first: int) -> list[str]:
    """The recorded responses to a turn's calls, from reference call `first` on; calls of pseudo-labels may have none."""
    remaining, found = list(zip(sample.reference, sample.responses))[first:], []
    for call in written_calls(turn):
        match = next((pair for pair in remaining if calls_equal([call], pair[:1])), None)
        if match is not None:
            remaining.remove(match)
            found.append(match[1])
    return found


def _trailing_responses(record: Mapping[str, Any]) -> list[str]:
    """The tool messages right before a record's last turn."""
    found: list[str] = []
    for message in reversed(record["messages"][:-1]):
        if message.get("role") != "tool":
            break
        found.insert(0, str(message.get("content") or ""))
    return found


def _message_text(message: Mapping[str, Any]) -> str:
    """A message's content, then its tool calls as lines of JSON."""
    functions = [call.get("function", call) for call in message.get("tool_calls") or ()]
    lines = [json.dumps(function, ensure_ascii=False, default=str) for function in functions]
    return "\n".join([text for text in [str(message.get("content") or ""), *lines] if text])
