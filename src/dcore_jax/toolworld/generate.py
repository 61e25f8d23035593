"""The task generator: tasks from a seed, with splits that share no item.

Item `index` of (seed, split) is drawn from a random stream of its own, so it does not depend on which other items are
generated. A hash of an item's requests, in their first wording, sorted and without the state, decides whether it is
training or test data. The splits `names` and `wordings` show test items under other tool names or in wordings that training
never sees; `families` and `values` hold what training never draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dcore_jax.errors import UserError, check_choice
from dcore_jax.toolworld.build import build_task
from dcore_jax.toolworld.family import Stream, ToolFamily, family_names, get_family, is_reserved, pick
from dcore_jax.toolworld.requests import Drawing, Drawn, side_of
from dcore_jax.toolworld.task import (
    DEFAULT_KINDS,
    KINDS,
    MAX_DIFFICULTY,
    MAX_SUBTASKS,
    SPLITS,
    Task,
)
from dcore_jax.toolworld.task import difficulty as difficulty_of

MAX_DISTRACTORS = 20
MAX_HISTORY = 3
_ATTEMPTS = 1000  # every fifth draw is of the test split: 1000 misses in a row are a bug
_SIDES = {
    "train": "train",
    "values": None,
}  # of a split's items, by content; the other splits hold test items


@dataclass(frozen=True)
class _Choice:
    """What `generate_tasks` draws from."""

    split: str
    sizes: list[tuple[str, list[int]]]  # each possible kind with its possible numbers of calls
    families: list[ToolFamily]
    distractors: int
    history: int
    policy: bool


def generate_tasks(
    count: int,
    *,
    seed: int,
    split: str = "train",
    kinds: Sequence[str] | None = None,
    subtasks: tuple[int, int] = (1, MAX_SUBTASKS),
    families: Sequence[str] | None = None,
    start: int = 0,
    distractors: int = 0,
    difficulty: tuple[int, int] = (1, MAX_DIFFICULTY),
    history: int = 0,
    policy: bool = False,
) -> list[Task]:
    """Tasks `start` to `start + count - 1` of (seed, split).

    Items are drawn with replacement: a long list of single tasks may hold the same one twice (same `id`).

    Args:
      split: `train` and `test` differ by content. Held out beside them: `families` (the held-out ones), `names` (tools under
        their synonyms), `wordings` (the third ones), `values` (those reserved).
      kinds: drawn with equal probability; None: of DEFAULT_KINDS all that fit `subtasks` and `difficulty`.
      subtasks: fewest and most calls, both included; single tasks have one, sequential and parallel ones two or
        more, mixed ones three or more, and irrelevant and missing ones none, whatever this range is.
      families: drawn with equal probability; None: all registered ones of the split's side.
      start: index of the first task: a stream can be generated in pieces, in any order.
      distractors: tools of other families beside the family's own.
      difficulty: lowest and highest, both included; see `task.difficulty`.
      history: earlier requests, each with its call and report.
      policy: put each task under a rule; half of the irrelevant ones are what it forbids.

    Raises:
      UserError: an unknown split, kind or family, a kind that does not fit the range of subtasks or the difficulty, a family
        that the split does not draw from.
    """
    if count < 0 or start < 0:
        raise UserError(f"count={count} and start={start} must not be negative")
    check_choice("split", split, SPLITS)
    for name, value, highest in (
        ("distractors", distractors, MAX_DISTRACTORS),
        ("history", history, MAX_HISTORY),
    ):
        if not 0 <= value <= highest:
            raise UserError(f"{name}={value} must be within 0 to {highest}")
    chosen = _families(split, families, policy)
    sizes = _kind_sizes(kinds, subtasks, difficulty, (distractors, history, policy))
    choice = _Choice(split, sizes, chosen, distractors, history, policy)
    return [_generate(seed, index, choice) for index in range(start, start + count)]


def _families(split: str, names: Sequence[str] | None, policy: bool) -> list[ToolFamily]:
    held_out = split == "families"
    side = family_names(held_out=held_out)
    chosen = [get_family(name) for name in (side if names is None else names)]
    if not chosen:
        raise UserError("families is empty; leave it out for all of them")
    for family in chosen:
        if family.name not in side:
            raise UserError(
                f"split {split!r} does not draw from family {family.name!r}; choose among {', '.join(side)}"
            )
        if split == "wordings" and not {1, 2, 3} <= {
            len(p.steps) for p in family.plans if p.wordings(held_out=True)
        }:
            raise UserError(f"family {family.name!r} has no third wordings, which split 'wordings' needs")
        if split == "names" and not all(tool.synonym for tool in family.tools):
            raise UserError(f"family {family.name!r} has tools without a synonym, which split 'names' needs")
        if policy and not family.policies:
            raise UserError(f"family {family.name!r} has no policies, which policy needs")
    return chosen


def _kind_sizes(
    kinds: Sequence[str] | None,
    subtasks: tuple[int, int],
    levels: tuple[int, int],
    extras: tuple[int, int, bool],
) -> list[tuple[str, list[int]]]:
    """Each possible kind with the numbers of subtasks that it can have, in the order of KINDS."""
    low, high = subtasks
    if not 1 <= low <= high <= MAX_SUBTASKS:
        raise UserError(f"subtasks={subtasks} must be a range within 1 to {MAX_SUBTASKS}")
    if not 1 <= levels[0] <= levels[1] <= MAX_DIFFICULTY:
        raise UserError(f"difficulty={levels} must be a range within 1 to {MAX_DIFFICULTY}")
    several = range(max(low, 2), high + 1)
    possible = {
        "single": range(1, 2) if low == 1 else range(0),
        "sequential": several,
        "parallel": several,
        "irrelevant": range(1),
        "missing": range(1),
        "mixed": range(max(low, 3), high + 1),
    }
    distractors, history, policy = extras
    levelled = {
        kind: [
            n
            for n in possible[kind]
            if levels[0]
            <= difficulty_of(kind, n, distractors=distractors, history=history, policy=policy)
            <= levels[1]
        ]
        for kind in KINDS
    }
    for kind in kinds or ():
        if kind not in KINDS:
            raise UserError(f"kind {kind!r} is unknown; the kinds are {', '.join(KINDS)}")
        if not possible[kind]:
            raise UserError(
                f"kind {kind!r} does not fit subtasks={subtasks}; single has 1, mixed 3 or more, the others 2 or more"
            )
        if not levelled[kind]:
            raise UserError(f"kind {kind!r} with subtasks={subtasks} is never of difficulty={levels}")
    wanted = DEFAULT_KINDS if kinds is None else kinds
    sizes = [(kind, levelled[kind]) for kind in KINDS if kind in wanted and levelled[kind]]
    if not sizes:
        raise UserError(
            f"no kind with subtasks={subtasks} is of difficulty={levels}"
            if kinds is None
            else "kinds is empty; leave it out for all of them"
        )
    return sizes


def _belongs(drawn: Drawn, side: str | None) -> bool:
    """Whether the requests are of that side of train and test; without one, whether they name a reserved value."""
    if side is not None:
        return side_of(request.content for request in drawn.requests) == side
    values = (value for request in drawn.requests for value in request.values.values())
    return any(isinstance(value, str) and is_reserved(value) for value in values)


def _generate(seed: int, index: int, choice: _Choice) -> Task:
    side = _SIDES.get(choice.split, "test")
    for attempt in range(_ATTEMPTS):
        rng = Stream(f"toolworld {seed} {choice.split} {index} {attempt}")
        rng.reserved = choice.split == "values"
        family = pick(rng, choice.families)
        kind, numbers = pick(rng, choice.sizes)
        others = [other for other in choice.families if other is not family]
        drawing = Drawing(rng, family, others, held_out_wordings=choice.split == "wordings")
        drawn = drawing.draw(kind, pick(rng, numbers), policy=choice.policy)
        if _belongs(drawn, side):
            return build_task(
                rng,
                drawing.with_history(drawn, choice.history, side),
                distractors=choice.distractors,
                renamed=choice.split == "names",
                held_out_wordings=choice.split == "wordings",
            )
    raise RuntimeError(f"no {choice.split} item found for seed {seed}, index {index}")
