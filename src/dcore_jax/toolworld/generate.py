"""Tasks from a seed.

Item `index` of (seed, split) is drawn from its own random stream, so it is the same whatever else is asked
for. Which split an item belongs to is a hash of what it asks, whatever the wording, order or state: train
and test cannot share one.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dcore_jax.calls import JSON, Call
from dcore_jax.errors import UserError
from dcore_jax.toolworld.family import Output, Plan, ToolFamily, family_names, fresh, get_family, pick
from dcore_jax.toolworld.task import KINDS, MAX_SUBTASKS, REFUSAL, SPLITS, Task, output_text
from dcore_jax.toolworld.tool import run_tool

_TEST_SHARE = 5  # one request in five belongs to the test split
_ATTEMPTS = 1000  # a draw lands in the test split every fifth time: 1000 misses in a row is a bug


@dataclass(frozen=True)
class _Ask:
    """A plan with values in its slots."""

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

    Args:
      kinds: which kinds, drawn with equal chance; all that fit `subtasks` by default.
      subtasks: fewest and most calls, both included; single has one, sequential and parallel have two or
        more, and irrelevant has none whatever is said here.
      families: which families, drawn with equal chance; all registered ones by default.
      start: index of the first task: a stream can be asked for in pieces, in any order.

    Items are drawn with replacement: a long list of single tasks may hold the same one twice (same `id`).
    Raises UserError for an unknown split, kind or family, and for a kind that the range of subtasks leaves
    no room for.
    """
    if count < 0 or start < 0:
        raise UserError(f"count={count} and start={start} must not be negative")
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; the splits are {', '.join(SPLITS)}")
    sizes = _sizes(kinds, subtasks)
    chosen = [get_family(name) for name in (family_names() if families is None else families)]
    if not chosen:
        raise UserError("families is empty; leave it out for all of them")
    return [_generate(seed, split, index, sizes, chosen) for index in range(start, start + count)]


def task_split(task_contents: Iterable[str]) -> str:
    """The split of an item, from its requests in their first wording; their order does not count."""
    digest = hashlib.sha256("\n".join(sorted(task_contents)).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _TEST_SHARE == 0 else "train"


def _sizes(kinds: Sequence[str] | None, subtasks: tuple[int, int]) -> list[tuple[str, range]]:
    """Each kind that can occur with the numbers of subtasks it can have, in the order of KINDS."""
    low, high = subtasks
    if not 1 <= low <= high <= MAX_SUBTASKS:
        raise UserError(f"subtasks={subtasks} must be a range within 1 to {MAX_SUBTASKS}")
    for kind in kinds or ():
        if kind not in KINDS:
            raise UserError(f"kind {kind!r} is unknown; the kinds are {', '.join(KINDS)}")
    many = range(max(low, 2), high + 1)
    room = {
        "single": range(low, min(high, 1) + 1),
        "sequential": many,
        "parallel": many,
        "irrelevant": range(1),
    }
    for kind in kinds or ():
        if not room[kind]:
            raise UserError(
                f"kind {kind!r} does not fit subtasks={subtasks}; single has 1, the others 2 or more"
            )
    sizes = [(kind, room[kind]) for kind in KINDS if room[kind] and (kinds is None or kind in kinds)]
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
        asks = _draw_asks(rng, family, _draw_plans(rng, family, kind, pick(rng, numbers)))
        if task_split(ask.content for ask in asks) == split:
            return _build(rng, family, kind, asks)
    raise RuntimeError(f"no {split} item found for seed {seed}, index {index}")


def _draw_plans(rng: Random, family: ToolFamily, kind: str, number: int) -> list[Plan]:
    if kind == "irrelevant":
        return [pick(rng, family.foreign)]
    lengths = [1] * number
    if kind == "sequential":
        lengths = pick(rng, _chains(number, {len(plan.steps) for plan in family.plans} - {1}))
    return [pick(rng, [plan for plan in family.plans if len(plan.steps) == length]) for length in lengths]


def _chains(number: int, lengths: set[int]) -> list[list[int]]:
    """Every way to make `number` calls of chains of these lengths: 5 is 2 + 3 or 3 + 2."""
    if number == 0:
        return [[]]
    return [[n, *rest] for n in sorted(lengths) if n <= number for rest in _chains(number - n, lengths)]


def _slot_type(slot: str) -> str:
    return slot.rstrip("0123456789")


def _draw_asks(rng: Random, family: ToolFamily, plans: list[Plan]) -> list[_Ask]:
    # No two slots of a type share a value, so no request touches what another one asks for.
    taken: dict[str, list[JSON]] = {}
    asks = []
    for plan in plans:
        values = {}
        for slot in plan.slots:
            used = taken.setdefault(_slot_type(slot), [])
            values[slot] = fresh(rng, family.values[_slot_type(slot)], 1, used)[0]
            used.append(values[slot])
        asks.append(_Ask(plan, values))
    return asks


def _build(rng: Random, family: ToolFamily, kind: str, asks: list[_Ask]) -> Task:
    wanted: dict[str, list[JSON]] = {}
    for ask in asks:
        for slot, value in ask.values.items():
            wanted.setdefault(_slot_type(slot), []).append(value)
    initial_state = family.initial_state(rng, wanted)
    state = copy.deepcopy(initial_state)
    calls: list[Call] = []
    outputs: list[Any] = []
    subtasks: list[str] = []
    reports: list[str] = []
    for ask in asks:
        first = len(calls)
        numbers = range(first + 1, first + len(ask.plan.steps) + 1)
        for step in ask.plan.steps:
            arguments = {
                name: outputs[first + source.step][source.key]
                if isinstance(source, Output)
                else ask.values[source]
                for name, source in step.arguments.items()
            }
            tool = family.tool(step.tool)
            assert tool is not None, f"family {family.name} has no tool {step.tool}"
            calls.append(Call(step.tool, arguments))
            outputs.append(run_tool(tool, state, arguments))
            subtasks.append(step.wording.format(*numbers, **ask.values))
        reports.append(ask.plan.report.format(*outputs[first:], **ask.values))
    query = _join([pick(rng, ask.plan.requests).format(**ask.values) for ask in asks], kind)
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
