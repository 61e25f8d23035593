"""Lessons of reading a numbered list in order: from lines `step 3: open page m1.` to what stands in each of them.

A self-distilled model first writes its plan as such lines and then acts on them one by one, or on all of them at once. What
a model of a million parameters gets wrong there is no question of tools: it takes a value of an earlier line. These lessons
have no tools, no thoughts and no calls: the lines are subtasks of the tool world in any task's words, and what is asked for is
the k-th line, or the first word of each line with the line's values. `PLAN_LESSONS` names each, so that what a base was taught
can be said.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from dcore_jax.errors import check_choice
from dcore_jax.toolworld import generate_tasks
from dcore_jax.toolworld.task import MAX_SUBTASKS, Task


def _lines(steps: Sequence[str]) -> str:
    return "\n".join(f"step {number}: {step}." for number, step in enumerate(steps, 1))


def _listed(steps: Sequence[str]) -> str:
    return " and ".join([", ".join(steps[:-1]), steps[-1]])


def _values(task: Task) -> str:
    """`open page="m1", set page="n5" rank=5`: of each step its first word, and its values by name."""
    parts = []
    for step, call in zip(task.subtasks, task.reference, strict=True):
        pairs = " ".join(f"{name}={json.dumps(value)}" for name, value in call.arguments.items())
        parts.append(f"{step.partition(' ')[0]} {pairs}")
    return ", ".join(parts)


def _values_of_lines(task: Task, at: int) -> tuple[str, str]:
    return f"values of:\n{_lines(task.subtasks)}", _values(task)


def _lines_and_values(task: Task, at: int) -> tuple[str, str]:
    lines = _lines(task.subtasks)
    return f"one a line, then the values: {_listed(task.subtasks)}", f"{lines}\n\n{_values(task)}"


def _line(task: Task, at: int) -> tuple[str, str]:
    return f"number {at + 1} of:\n{_lines(task.subtasks)}", f"step {at + 1}: {task.subtasks[at]}."


def _lines_and_line(task: Task, at: int) -> tuple[str, str]:
    lines = _lines(task.subtasks)
    answer = f"{lines}\n\nstep {at + 1}: {task.subtasks[at]}."
    return f"one a line, then number {at + 1}: {_listed(task.subtasks)}", answer


_LESSONS: dict[str, Callable[[Task, int], tuple[str, str]]] = {
    "values": _values_of_lines, "lines_values": _lines_and_values, "line": _line, "lines_line": _lines_and_line,
}  # fmt: skip
PLAN_LESSONS = tuple(_LESSONS)
_IN_ORDER = ("values", "lines_values")  # their values all stand in the lines


def plan_records(
    count: int, seed: int = 0, lessons: Sequence[str] = PLAN_LESSONS
) -> Iterator[dict[str, Any]]:
    """Chat records of the lessons, in turns, with subtasks of two to five steps from the split `train`.

    Args:
      lessons: of PLAN_LESSONS. Raises UserError for another name.
    """
    for lesson in lessons:
        check_choice("plan lesson", lesson, PLAN_LESSONS)
    for index in range(count):
        rng = Random(f"plans {seed} {index}")
        lesson = lessons[index % len(lessons)]
        kinds = ["parallel"] if lesson in _IN_ORDER else ["sequential", "mixed"]
        (task,) = generate_tasks(1, seed=seed, kinds=kinds, subtasks=(2, MAX_SUBTASKS), start=index)
        question, answer = _LESSONS[lesson](task, int(rng.random() * len(task.subtasks)))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "category": "plans", "id": f"plans-{seed}-{index}"}
