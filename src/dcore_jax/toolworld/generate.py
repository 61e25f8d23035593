"""The task generator: tasks from a seed, with train and test splits that share no item.

Item `index` of (seed, split) is drawn from a random stream of its own, so it does not depend on which other items are
generated. A hash of an item's requests, in their first wording, sorted and without the state, decides its split.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dcore_jax.calls import JSON, Call
from dcore_jax.errors import UserError, check_choice
from dcore_jax.toolworld.family import Output, Plan, ToolFamily, draw_distinct, family_names, get_family, pick
from dcore_jax.toolworld.task import KINDS, MAX_SUBTASKS, REFUSAL, SPLITS, Task, output_text
from dcore_jax.toolworld.tool import run_tool

_TEST_SHARE = 5  # one request in five belongs to the test split
_ATTEMPTS = 1000  # every fifth draw is of the test split: 1000 misses in a row are a bug


@dataclass(frozen=True)
class _Request:
    """A plan with values for its slots."""

    plan: Plan
    values: dict[str, JSON]

    @property
    def content(self) -> str:
        """The request in its first wording: the same for every wording of the same request."""
        return self.plan.requests[0].format(**self.values)


def generate_tasks(
    count: int,
    *,
    seed: int,
    split: str = "train",
    kinds: Sequence[str] | None = None,
    subtasks: tuple[int, int] = (1, MAX_SUBTASKS),
    families: Sequence[str] | None = None,
    start: int = 0,
) -> list[Task]:
    """Tasks `start` to `start + count - 1` of (seed, split).

    Items are drawn with replacement: a long list of single tasks may hold the same one twice (same `id`).

    Args:
      kinds: drawn with equal probability; None: all that fit `subtasks`.
      subtasks: fewest and most calls, both included; single tasks have one, sequential and parallel ones two or
        more, and irrelevant ones none, whatever this range is.
      families: drawn with equal probability; None: all registered ones.
      start: index of the first task: a stream can be generated in pieces, in any order.

    Raises:
      UserError: an unknown split, kind or family, or a kind that does not fit the range of subtasks.
    """
    if count < 0 or start < 0:
        raise UserError(f"count={count} and start={start} must not be negative")
    check_choice("split", split, SPLITS)
    sizes = _kind_sizes(kinds, subtasks)
    chosen = [get_family(name) for name in (family_names() if families is None else families)]
    if not chosen:
        raise UserError("families is empty; leave it out for all of them")
    return [_generate(seed, split, index, sizes, chosen) for index in range(start, start + count)]


def task_split(task_contents: Iterable[str]) -> str:
    """The split of an item, from its requests in their first wording; their order does not matter."""
    digest = hashlib.sha256("\n".join(sorted(task_contents)).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _TEST_SHARE == 0 else "train"


def _kind_sizes(kinds: Sequence[str] | None, subtasks: tuple[int, int]) -> list[tuple[str, range]]:
    """Each possible kind with the numbers of subtasks that it can have, in the order of KINDS."""
    low, high = subtasks
    if not 1 <= low <= high <= MAX_SUBTASKS:
        raise UserError(f"subtasks={subtasks} must be a range within 1 to {MAX_SUBTASKS}")
    for kind in kinds or ():
        if kind not in KINDS:
            raise UserError(f"kind {kind!r} is unknown; the kinds are {', '.join(KINDS)}")
    many = range(max(low, 2), high + 1)
    possible = {
        "single": range(low, min(high, 1) + 1),
        "sequential": many,
        "parallel": many,
        "irrelevant": range(1),
    }
    for kind in kinds or ():
        if not possible[kind]:
            raise UserError(
                f"kind {kind!r} does not fit subtasks={subtasks}; single has 1, the others 2 or more"
            )
    sizes = [(kind, possible[kind]) for kind in KINDS if possible[kind] and (kinds is None or kind in kinds)]
    if not sizes:
        raise UserError("kinds is empty; leave it out for all of them")
    return sizes


def _generate(
    seed: int, split: str, index: int, sizes: list[tuple[str, range]], families: list[ToolFamily]
) -> Task:
    for attempt in range(_ATTEMPTS):
        rng = Random(f"toolworld {seed} {split} {index} {attempt}")
        family = pick(rng, families)
        kind, numbers = pick(rng, sizes)
        requests = _draw_requests(rng, family, _draw_plans(rng, family, kind, pick(rng, numbers)))
        if task_split(request.content for request in requests) == split:
            return _build(rng, family, kind, requests)
    raise RuntimeError(f"no {split} item found for seed {seed}, index {index}")


def _draw_plans(rng: Random, family: ToolFamily, kind: str, number: int) -> list[Plan]:
    if kind == "irrelevant":
        return [pick(rng, family.foreign)]
    lengths = [1] * number
    if kind == "sequential":
        lengths = pick(rng, _chains(number, {len(plan.steps) for plan in family.plans} - {1}))
    return [pick(rng, [plan for plan in family.plans if len(plan.steps) == length]) for length in lengths]


def _chains(number: int, lengths: set[int]) -> list[list[int]]:
    """All ordered sums of these chain lengths that make `number` calls: 5 is 2 + 3 or 3 + 2."""
    if number == 0:
        return [[]]
    return [[n, *rest] for n in sorted(lengths) if n <= number for rest in _chains(number - n, lengths)]


def _slot_type(slot: str) -> str:
    return slot.rstrip("0123456789")


def _draw_requests(rng: Random, family: ToolFamily, plans: list[Plan]) -> list[_Request]:
    # No two slots of a type share a value, so that requests do not affect one another.
    taken: dict[str, list[JSON]] = {}
    requests = []
    for plan in plans:
        values = {}
        for slot in plan.slots:
            used = taken.setdefault(_slot_type(slot), [])
            values[slot] = draw_distinct(rng, family.values[_slot_type(slot)], 1, used)[0]
            used.append(values[slot])
        requests.append(_Request(plan, values))
    return requests


def _build(rng: Random, family: ToolFamily, kind: str, requests: list[_Request]) -> Task:
    wanted: dict[str, list[JSON]] = {}
    for request in requests:
        for slot, value in request.values.items():
            wanted.setdefault(_slot_type(slot), []).append(value)
    initial_state = family.initial_state(rng, wanted)
    state = copy.deepcopy(initial_state)
    calls: list[Call] = []
    outputs: list[Any] = []
    subtasks: list[str] = []
    reports: list[str] = []
    for request in requests:
        first = len(calls)
        numbers = range(first + 1, first + len(request.plan.steps) + 1)
        for step in request.plan.steps:
            arguments = {
                name: outputs[first + source.step][source.key]
                if isinstance(source, Output)
                else request.values[source]
                for name, source in step.arguments.items()
            }
            tool = family.tool(step.tool)
            assert tool is not None, f"family {family.name} has no tool {step.tool}"
            calls.append(Call(step.tool, arguments))
            outputs.append(run_tool(tool, state, arguments))
            subtasks.append(step.wording.format(*numbers, **request.values))
        reports.append(request.plan.report.format(*outputs[first:], **request.values))
    query = _join([pick(rng, request.plan.requests).format(**request.values) for request in requests], kind)
    content = [family.name, query, initial_state, [[call.name, dict(call.arguments)] for call in calls]]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Task(
        id=f"{family.name}-{kind}-{digest[:16]}",
        family=family.name,
        kind=kind,
        tools=tuple(tool.schema() for tool in family.tools),
        query=query,
        initial_state=initial_state,
        subtasks=tuple(subtasks),
        reference=tuple(calls),
        responses=tuple(output_text(output) for output in outputs),
        answer=REFUSAL if kind == "irrelevant" else ". ".join(reports) + ".",
    )


def _join(requests: list[str], kind: str) -> str:
    if kind == "sequential":
        return ", then ".join(requests)
    return " and ".join([", ".join(requests[:-1]), requests[-1]] if len(requests) > 1 else requests)
