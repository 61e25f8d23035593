"""Tasks as chat records for SFT, in each call format."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcore_jax.atomic import atomic_path
from dcore_jax.calls import CallFormat, render_calls
from dcore_jax.toolworld.task import Task


def to_record(task: Task, *, call_format: CallFormat = "python", thinking: bool = True) -> dict[str, Any]:
    """A chat record `{"messages", "tools", "category", "id"}` of the task solved by its reference.

    Sequential tasks call one tool per turn, the others all tools in one turn; `role: tool` messages hold one response
    each, and a last assistant turn reports.

    Args:
      call_format: `python` and `tags` put calls into the content, `qwen` and `json` into OpenAI `tool_calls`, which the
        template writes.
      thinking: begin every assistant turn with `<think>\\n...\\n</think>\\n\\n`.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": task.query}]
    for turn in _turns(task):
        thought = _calling_thought(task, turn) if thinking else ""
        messages.append(_calling_message(task, turn, thought, call_format))
        messages += [
            {"role": "tool", "name": task.reference[i].name, "content": task.responses[i]} for i in turn
        ]
    thought = "the tools have answered." if task.reference else "no tool serves this request."
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


def _turns(task: Task) -> list[range]:
    """The indices in the reference of each calling turn's calls."""
    if task.kind == "sequential":
        return [range(i, i + 1) for i in range(len(task.reference))]
    return [range(len(task.reference))] if task.reference else []


def _calling_thought(task: Task, turn: range) -> str:
    steps = "\n".join(f"step {i + 1}: {task.subtasks[i]}." for i in turn)
    return think(steps + ("\nno step needs another." if task.kind == "parallel" else ""))


def _calling_message(task: Task, turn: range, thought: str, call_format: CallFormat) -> dict[str, Any]:
    calls = [task.reference[i] for i in turn]
    if call_format in ("python", "tags"):
        return {"role": "assistant", "content": thought + render_calls(calls, call_format)}
    tool_calls = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in calls
    ]
    return {"role": "assistant", "content": thought, "tool_calls": tool_calls}


def think(thought: str) -> str:
    """The thought between its tags, as the format reward expects it before an answer."""
    return f"<think>\n{thought}\n</think>\n\n"
