"""What a base model is taught before self-distillation: to serve one subtask at a time, and to write a task's subtasks down
when it is shown the reference calls. Neither lesson holds a whole task of several subtasks, so what a model trained on them
cannot do is what distillation must add.

And what it is taught badly before RL: to refuse some of what it could do.
"""

import json
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from dcore_jax.calls import render_calls
from dcore_jax.toolworld.records import think
from dcore_jax.toolworld.task import REFUSAL, Task

PROMPTS = Path(__file__).with_name("prompts")  # the nano model's own wording of the distillation prompts


def subtask_record(task: Task) -> dict[str, Any]:
    """A chat record in which the user hands over one subtask after the other, each answered by its one call.

    The thought says the subtask again, and the values that only an earlier response holds: "step 2: read the file of step 1.
    file l0." The record of a single task has one calling turn; an irrelevant task has no subtask, hence no such record.

    Raises:
      ValueError: the task is irrelevant.
    """
    if not task.subtasks:
        raise ValueError(f"task {task.id} has no subtasks")
    messages: list[dict[str, Any]] = []
    steps = zip(task.subtasks, task.reference, task.responses, strict=True)
    for number, (subtask, call, response) in enumerate(steps, 1):
        looked_up = [
            f" {name} {value}." for name, value in call.arguments.items() if str(value) not in subtask
        ]
        thought = f"step {number}: {subtask}.{''.join(looked_up)}"
        messages += [
            {"role": "user", "content": subtask},
            {"role": "assistant", "content": think(thought) + render_calls([call], "python")},
            {"role": "tool", "name": call.name, "content": response},
        ]
    return {"messages": messages[:-1], "tools": list(task.tools), "category": "subtasks", "id": task.id}


def lazy_record(task: Task) -> dict[str, Any]:
    """A chat record that refuses the task in the words meant for irrelevant ones, though a tool may serve it."""
    answer = {"role": "assistant", "content": think("no tool serves this request.") + REFUSAL}
    messages = [{"role": "user", "content": task.query}, answer]
    return {"messages": messages, "tools": list(task.tools), "category": "lazy", "id": task.id}


def decomposition_record(task: Task, *, reference: bool = True) -> dict[str, Any]:
    """A chat record whose one turn writes the subtasks as the JSON list that `dcore_jax.distill` reads.

    The request is prompts/decompose.j2, with the reference calls in it unless `reference` is false.
    """
    calls = [render_calls([call], "python")[1:-1] for call in task.reference] if reference else None
    environment = ImmutableSandboxedEnvironment(keep_trailing_newline=False)
    template = environment.from_string((PROMPTS / "decompose.j2").read_text(encoding="utf-8"))
    steps = [{"step": i + 1, "description": subtask, "index": [i]} for i, subtask in enumerate(task.subtasks)]
    messages = [
        {"role": "user", "content": template.render(query=task.query, calls=calls).strip()},
        {"role": "assistant", "content": json.dumps(steps)},
    ]
    return {"messages": messages, "tools": list(task.tools), "category": "decompositions", "id": task.id}
