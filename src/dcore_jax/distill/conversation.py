"""Seed samples as the messages that a chat template takes: the same layout for asking and for training.

Calls stand in the text of assistant turns, in the run's call format, without the thought that led to them.
"""

from collections.abc import Sequence
from typing import Any

from dcore_jax.calls import Call, CallFormat, render_calls
from dcore_jax.distill.ask import Message
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.templates import Templates


def opening(sample: SeedSample, templates: Templates, call_format: CallFormat) -> list[Message]:
    """System turn and history: everything before the query, or for a report everything before the report."""
    if templates.writes_tools:
        system = templates.render("system", policy=sample.policy, tools=sample.tools)
    else:
        system = sample.policy
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    return messages + [as_text(message, call_format) for message in sample.history]


def offered(sample: SeedSample, templates: Templates) -> tuple[dict[str, Any], ...]:
    """The tools that the chat template has to write; none where the system turn holds them already."""
    return () if templates.writes_tools else sample.tools


def as_text(message: Message, call_format: CallFormat) -> Message:
    """A message with its calls in its text; words beside calls are left out, since `python` has no place for them."""
    if not message.get("tool_calls"):
        return message
    functions = [call.get("function", call) for call in message["tool_calls"]]
    calls = [Call(function["name"], function["arguments"]) for function in functions]
    return {"role": message["role"], "content": render_calls(calls, call_format)}


def called(calls: Sequence[Call], responses: Sequence[str], call_format: CallFormat) -> list[Message]:
    """An assistant turn that makes the calls, and one tool message for each response."""
    turn = {"role": "assistant", "content": render_calls(calls, call_format)}
    return [
        turn,
        *({"role": "tool", "name": c.name, "content": r} for c, r in zip(calls, responses, strict=True)),
    ]
