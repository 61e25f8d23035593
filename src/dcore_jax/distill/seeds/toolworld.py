"""Tasks of the tool world as seeds: `toolworld:200`, `toolworld:200,seed=1,split=train,subtasks=3-5`.

One sample a task, with the task itself for `execute` and its responses for `replay`; `reports=yes` adds the report
of every task with calls as a sample of its own.
"""

import re
from collections.abc import Iterator
from typing import Any

from dcore_jax.distill.sample import Kind, SeedSample
from dcore_jax.distill.seeds.conversation import Conversation, Exchange, Step, samples_of, with_id
from dcore_jax.errors import UserError
from dcore_jax.toolworld import MAX_SUBTASKS, Task, generate_tasks

_KINDS: dict[str, Kind] = {
    "single": "sequential",
    "sequential": "sequential",
    "parallel": "parallel",
    "irrelevant": "irrelevant",
}
_OPTIONS = ("seed", "split", "subtasks", "kinds", "families", "start", "reports")


def read(spec: str) -> Iterator[SeedSample]:
    """The samples of a specification: a number of tasks, then options of `generate_tasks` as `name=value`.

    `subtasks` is a number or a range (`3-5`); `kinds` and `families` are joined by `+`. Raises `UserError`.
    """
    options = _options(spec)
    reports = options.pop("reports")
    for number, task in enumerate(generate_tasks(**options), start=options["start"]):
        yield sample_of(task, number)
        if reports and task.reference:
            yield report_of(task, number)


def sample_of(task: Task, number: int = 0) -> SeedSample:
    """The task as a seed sample: its calls, or its refusal."""
    return with_id(
        SeedSample(
            id="",
            source="toolworld",
            origin=f"toolworld:{number}",
            kind=_KINDS[task.kind],
            policy="",
            tools=task.tools,
            history=(),
            query=task.query,
            reference=task.reference,
            responses=task.responses,
            answer="" if task.reference else task.answer,
            task=task,
        )
    )


def report_of(task: Task, number: int = 0) -> SeedSample:
    """The last turn of a solved task: the report, with the calls and their responses in the history."""
    turns = (
        [range(len(task.reference))]
        if task.kind == "parallel"
        else [range(i, i + 1) for i in range(len(task.reference))]
    )
    steps = [
        Step("", tuple(task.reference[i] for i in turn), tuple(task.responses[i] for i in turn))
        for turn in turns
    ]
    exchange = Exchange(task.query, (*steps, Step(task.answer, ())))
    found = samples_of(
        Conversation("toolworld", f"toolworld:{number}", "", task.tools, (exchange,), task=task)
    )
    return next(sample for sample in found if isinstance(sample, SeedSample) and sample.kind == "report")


def _options(spec: str) -> dict[str, Any]:
    count, *pairs = [part.strip() for part in spec.split(",")]
    options: dict[str, Any] = {
        "count": _number(spec, "the number of tasks", count),
        "seed": 0,
        "start": 0,
        "reports": False,
    }
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if name not in _OPTIONS or not equals:
            raise UserError(
                f"toolworld:{spec}: unknown option {pair!r}; the options are {', '.join(_OPTIONS)}, as name=value"
            )
        if name in ("seed", "start"):
            options[name] = _number(spec, name, value)
        elif name == "subtasks":
            options[name] = _range(spec, value)
        elif name == "reports":
            if value not in ("yes", "no"):
                raise UserError(f"toolworld:{spec}: reports is yes or no, not {value!r}")
            options[name] = value == "yes"
        else:
            options[name] = value if name == "split" else value.split("+")
    return options


def _number(spec: str, name: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise UserError(
            f"toolworld:{spec}: {name} must be a whole number, not {value!r}; write toolworld:200,seed=0"
        )
    return int(value)


def _range(spec: str, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d)(?:-(\d))?", value)
    if found is None:
        raise UserError(
            f"toolworld:{spec}: subtasks is a number or a range such as 3-{MAX_SUBTASKS}, not {value!r}"
        )
    return int(found[1]), int(found[2] or found[1])
