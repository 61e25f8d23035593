"""Tool-world tasks named in one line, wherever a data file could be named: `toolworld:200,seed=1,subtasks=3-5`.

The line is `toolworld`, or `toolworld:` and a number of tasks, then options as `name=value`, all joined by commas.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from dcore_jax.errors import UserError
from dcore_jax.toolworld.generate import generate_tasks
from dcore_jax.toolworld.task import MAX_DIFFICULTY, MAX_SUBTASKS, Task

TOOLWORLD = "toolworld"
OPTIONS = (
    *("seed", "split", "subtasks", "kinds", "families", "start"),
    *("distractors", "difficulty", "history", "policy"),
)  # of generate_tasks
EXTRA_OPTIONS = (
    "reports",
    "lazy",
    "lessons",
    "lesson_kinds",
    "copying",
    "plans",
)  # what a caller makes of the tasks; each takes some of them

LESSON_KINDS = ("sequential", "parallel", "mixed")


@dataclass(frozen=True)
class ToolWorldSpec:
    """Which tasks to draw, and what is made of them.

    Raises:
      UserError: an unknown split, kind or family, subtasks out of range, a share outside 0 to 1.
    """

    count: int
    seed: int = 0
    start: int = 0  # index of the first task
    split: str = "train"
    kinds: tuple[str, ...] | None = None  # drawn with equal chance; None: of DEFAULT_KINDS all that fit
    families: tuple[str, ...] | None = None  # drawn with equal chance; None: all of the split's side
    subtasks: tuple[int, int] = (1, MAX_SUBTASKS)  # fewest and most, both included
    distractors: int = 0  # tools of other families
    difficulty: tuple[int, int] = (1, MAX_DIFFICULTY)  # lowest and highest, both included
    history: int = 0  # earlier requests of the conversation
    policy: bool = False  # each task under a rule
    reports: bool = False  # the turns that report on tool results too
    lazy: float = 0.0  # share of the tasks that are refused, whether or not a tool serves them
    lessons: int = 0  # further tasks, shown as decompositions and subtask by subtask
    lesson_kinds: tuple[str, ...] = ("sequential", "parallel")  # of those tasks; with several calls
    copying: int = 0  # further lessons that are no tasks
    plans: int = 0  # and lessons of reading a numbered list in order

    def __post_init__(self) -> None:
        if not 0 <= self.lazy <= 1:
            raise UserError(f"lazy={self.lazy:g} is a share of the tasks, between 0 and 1")
        for kind in self.lesson_kinds:
            if kind not in LESSON_KINDS:
                raise UserError(f"lesson_kinds={kind}: choose among {', '.join(LESSON_KINDS)}")
        self._generate(0)  # checks every option

    def tasks(self) -> list[Task]:
        """The tasks, by `generate_tasks`; the same ones every time."""
        return self._generate(self.count)

    def _generate(self, count: int) -> list[Task]:
        return generate_tasks(
            count,
            seed=self.seed,
            split=self.split,
            kinds=self.kinds,
            subtasks=self.subtasks,
            families=self.families,
            start=self.start,
            distractors=self.distractors,
            difficulty=self.difficulty,
            history=self.history,
            policy=self.policy,
        )


def is_spec(text: str) -> bool:
    """Whether a name of data is a specification of tool-world tasks rather than a file's."""
    return text.partition(":")[0] == TOOLWORLD


def parse_spec(
    text: str, *, defaults: ToolWorldSpec | None = None, extra: Collection[str] = ()
) -> ToolWorldSpec:
    """Reads `toolworld:200,seed=1,split=train,subtasks=3-5,kinds=single+irrelevant,families=files,start=0`.

    Args:
      text: `subtasks` and `difficulty` are a number or a range, `kinds` and `families` are joined by `+`, `reports` and `policy`
        are yes or no, `lazy` is a share, and the others are whole numbers.
      defaults: what holds where the text says nothing, the number of tasks too; without it the text must give that.
      extra: which of EXTRA_OPTIONS the caller takes.

    Raises:
      UserError: not a specification, an option that does not exist or that the caller does not take, a wrong value.
    """
    if not is_spec(text):
        raise UserError(f"{text!r} does not name tasks of the tool world; write {TOOLWORLD}:200,seed=0")
    parts = [part.strip() for part in text.partition(":")[2].split(",")]
    given: dict[str, Any] = {}
    if parts[0] and "=" not in parts[0]:
        given["count"] = _whole_number(text, "the number of tasks", parts.pop(0))
    elif defaults is None:
        raise UserError(f"{text}: no number of tasks; write {TOOLWORLD}:200,seed=0")
    elif not parts[0]:
        parts.pop(0)
    taken = (*OPTIONS, *(name for name in EXTRA_OPTIONS if name in extra))
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in taken or not equals:
            problem = f"{name} is no option here" if name in EXTRA_OPTIONS else f"unknown option {part!r}"
            raise UserError(f"{text}: {problem}; the options are {', '.join(taken)}, as name=value")
        given[name] = _option(text, name, value)
    try:
        return ToolWorldSpec(**given) if defaults is None else replace(defaults, **given)
    except UserError as error:
        raise UserError(f"{text}: {error}") from None


def _option(text: str, name: str, value: str) -> Any:
    match name:
        case "seed" | "start" | "lessons" | "copying" | "plans" | "distractors" | "history":
            return _whole_number(text, name, value)
        case "subtasks" | "difficulty":
            return _range(text, name, value)
        case "lazy":
            return _share(text, value)
        case "reports" | "policy":
            if value not in ("yes", "no"):
                raise UserError(f"{text}: {name} is yes or no, not {value!r}")
            return value == "yes"
        case "kinds" | "families" | "lesson_kinds":
            return tuple(value.split("+"))
        case _:
            return value


def _whole_number(text: str, name: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise UserError(f"{text}: {name} must be a whole number, not {value!r}; write {TOOLWORLD}:200,seed=0")
    return int(value)


def _range(text: str, name: str, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d)(?:-(\d))?", value)
    if found is None:
        raise UserError(f"{text}: {name} is a number or a range such as 3-{MAX_SUBTASKS}, not {value!r}")
    return int(found[1]), int(found[2] or found[1])


def _share(text: str, value: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+", value):
        raise UserError(f"{text}: lazy is a share of the tasks between 0 and 1, such as 0.5, not {value!r}")
    return float(value)
