"""Tasks as chat records for SFT, in each call format."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dcore_jax.atomic import atomic_path
from dcore_jax.calls import Call, CallFormat, render_calls
from dcore_jax.toolworld.task import REFUSAL, Task


def to_record(task: Task, *, call_format: CallFormat = "python", thinking: bool = True) -> dict[str, Any]:
    """A chat record `{"messages", "tools", "category", "id"}` of the task solved by its reference.

    One assistant message per calling turn (`task.turns`), `role: tool` messages with one response each, and a last assistant
    turn that reports. Before the query stand the policy and the history, whose assistant turns have weight 0 in the loss.

    Args:
      call_format: `python` and `tags` put calls into the content, `qwen` and `json` into OpenAI `tool_calls`, which the
        template writes.
      thinking: begin every assistant turn with `<think>\\n...\\n</think>\\n\\n`.
    """
    messages = opening_messages(task, call_format)
    for turn in task.turns:
        thought = _calling_thought(task, turn) if thinking else ""
        messages.append(_with_calls([task.reference[i] for i in turn], thought, call_format))
        messages += [
            {"role": "tool", "name": task.reference[i].name, "content": task.responses[i]} for i in turn
        ]
    thought = closing_thought(task)
    report = f"<response>{task.answer}</response>" if call_format == "tags" else task.answer
    messages.append({"role": "assistant", "content": (think(thought) if thinking else "") + report})
    return {"messages": messages, "tools": list(task.tools), "category": task.kind, "id": task.id}


def write_jsonl(
    path: str | os.PathLike[str],
    tasks: Iterable[Task],
    *,
    call_format: CallFormat = "python",
    thinking: bool = True,
) -> int:
    """Writes one record per task and line; returns their number. The file is written as a whole or not at all."""
    return write_records(
        path, (to_record(task, call_format=call_format, thinking=thinking) for task in tasks)
    )


def write_records(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> int:
    """Writes one record per line; returns their number. The file is written as a whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_path(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            count += 1
    return count


def opening_messages(task: Task, call_format: CallFormat) -> list[dict[str, Any]]:
    """The messages before the model's first turn: policy, history and query. Turns of the history are not to be learned."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": task.policy}] if task.policy else []
    for message in task.history:
        if message["role"] == "assistant":
            calls = [Call(**found["function"]) for found in message.get("tool_calls", ())]
            text = message["content"]
            if calls or call_format != "tags":
                message = _with_calls(calls, text, call_format) | {"weight": 0}
            else:
                message = {"role": "assistant", "content": f"<response>{text}</response>", "weight": 0}
        messages.append(dict(message))
    return [*messages, {"role": "user", "content": task.query}]


def closing_thought(task: Task) -> str:
    """The thought before the answer."""
    if task.reference:
        return "the tools have answered."
    if task.kind == "missing":
        return "this request lacks a value."
    return "no tool serves this request." if task.answer == REFUSAL else "the rule forbids this request."


def _calling_thought(task: Task, turn: Sequence[int]) -> str:
    steps = "\n".join(f"step {i + 1}: {task.subtasks[i]}." for i in turn)
    return think(steps + ("\nno step needs another." if task.kind == "parallel" else ""))


def _with_calls(calls: Sequence[Call], text: str, call_format: CallFormat) -> dict[str, Any]:
    """An assistant message: the text, then the calls in that format."""
    if call_format in ("python", "tags"):
        written = render_calls(calls, call_format) if calls else ""
        return {"role": "assistant", "content": text + written}
    tool_calls = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in calls
    ]
    return {"role": "assistant", "content": text} | ({"tool_calls": tool_calls} if calls else {})


def think(thought: str) -> str:
    """The thought between its tags, as the format reward expects it before an answer."""
    return f"<think>\n{thought}\n</think>\n\n"
