"""Tasks of the tool world as seeds: `toolworld:200`, `toolworld:200,seed=1,split=train,subtasks=3-5`.

One sample per task, with the task for `execute` and its responses for `replay`; `reports=yes` adds the report of
every task with calls as another sample.
"""

from collections.abc import Iterator
from dataclasses import replace

from dcore_jax.distill.sample import Kind, SeedSample
from dcore_jax.distill.seeds.conversation import Conversation, Exchange, Step, samples_of, with_id
from dcore_jax.toolworld import TOOLWORLD, Task, parse_spec

_KINDS: dict[str, Kind] = {
    "single": "sequential",
    "sequential": "sequential",
    "parallel": "parallel",
    "irrelevant": "irrelevant",
    "missing": "missing",
    "mixed": "mixed",
}


def read(text: str) -> Iterator[SeedSample]:
    """The samples of a specification (toolworld/spec.py). Raises `UserError` for a wrong one."""
    spec = parse_spec(text, extra=("reports",))
    for number, task in enumerate(spec.tasks(), start=spec.start):
        yield sample_of(task, number)
        if spec.reports and task.reference:
            yield report_of(task, number)


def sample_of(task: Task, number: int = 0) -> SeedSample:
    """The task as a seed sample, with its reference calls or its refusal."""
    return with_id(
        SeedSample(
            id="",
            source=TOOLWORLD,
            origin=f"{TOOLWORLD}:{number}",
            kind=_KINDS[task.kind],
            policy=task.policy,
            tools=task.tools,
            history=task.history,
            query=task.query,
            reference=task.reference,
            responses=task.responses,
            answer="" if task.reference else task.answer,
            task=task,
            turns=task.turns if task.kind == "mixed" else (),
        )
    )


def report_of(task: Task, number: int = 0) -> SeedSample:
    """The report of a solved task as a seed sample, with the calls and their responses in the history."""
    steps = [
        Step("", tuple(task.reference[i] for i in turn), tuple(task.responses[i] for i in turn))
        for turn in task.turns
    ]
    exchange = Exchange(task.query, (*steps, Step(task.answer, ())))
    found = samples_of(
        Conversation(TOOLWORLD, f"{TOOLWORLD}:{number}", task.policy, task.tools, (exchange,), task=task)
    )
    report = next(sample for sample in found if isinstance(sample, SeedSample) and sample.kind == "report")
    return with_id(replace(report, history=(*task.history, *report.history))) if task.history else report
