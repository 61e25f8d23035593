"""Seed samples as messages for the chat template, in the same layout for prompts and for training records.

Calls are written into the content of assistant turns, in the run's call format; earlier turns have no thoughts.
"""

from collections.abc import Sequence
from typing import Any

from dcore_jax.calls import Call, CallFormat, render_calls
from dcore_jax.distill.ask import Message
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.templates import Templates


def opening_messages(sample: SeedSample, templates: Templates, call_format: CallFormat) -> list[Message]:
    """System turn and history: all messages before the query, or for a report all messages before the report."""
    if templates.writes_tools:
        system = templates.render("system", policy=sample.policy, tools=sample.tools)
    else:
        system = sample.policy
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    return messages + [inline_calls(message, call_format) for message in sample.history]


def template_tools(sample: SeedSample, templates: Templates) -> tuple[dict[str, Any], ...]:
    """The tools to pass to the chat template as `tools=`; none where the system turn lists them already."""
    return () if templates.writes_tools else sample.tools


def inline_calls(message: Message, call_format: CallFormat) -> Message:
    """A message with its `tool_calls` written as its content; text beside the calls is dropped: `python` has no place for it."""
    if not message.get("tool_calls"):
        return message
    functions = [call.get("function", call) for call in message["tool_calls"]]
    calls = [Call(function["name"], function["arguments"]) for function in functions]
    return {"role": message["role"], "content": render_calls(calls, call_format)}


def call_turn(calls: Sequence[Call], responses: Sequence[str], call_format: CallFormat) -> list[Message]:
    """The assistant turn that makes the calls, then one tool message per response."""
    turn = {"role": "assistant", "content": render_calls(calls, call_format)}
    tool_messages = [
        {"role": "tool", "name": call.name, "content": response}
        for call, response in zip(calls, responses, strict=True)
    ]
    return [turn, *tool_messages]
