"""Tool families: what a family declares, and the registry of families.

A family is data: its tools, the requests that they serve (plans of one to four calls), the requests that they do not
serve, rules that may forbid one of them, and functions that draw values and states. A new family is one file in
`families/` and one line in its `__init__`.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.errors import UserError
from dcore_jax.toolworld.tool import Tool

Draw = Callable[[Random], Any]  # one random value; called again when the value is already taken


@dataclass(frozen=True)
class Output:
    """An argument that is taken from the output of an earlier step of the plan."""

    step: int  # from 0
    key: str  # field of the output


@dataclass(frozen=True)
class Step:
    """One call of a plan.

    `arguments` maps a parameter to a slot's name or to an Output. `wording` describes the step; `{slot}` stands for a
    slot's value and `{0}` for the number of the plan's first step, so it cannot contain a value that only the reference
    knows.
    """

    tool: str
    arguments: Mapping[str, "str | Output"]
    wording: str


def step(tool: str, wording: str, **arguments: "str | Output") -> Step:
    """A Step, with its arguments by name: `step("read_file", "read file {file}", file="file")`."""
    return Step(tool, arguments, wording)


@dataclass(frozen=True)
class Plan:
    """One request and the calls that serve it; without steps a request that no tool of the family serves.

    `requests` are one to three wordings of the same request, with slots in braces; slots of one type differ by a digit
    (`{folder}`, `{folder2}`). The third wording is held out: only the split `wordings` uses it. `report` is the closing
    answer, with `{1[text]}` for an output.
    """

    requests: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    report: str = ""
    slots: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = (name for _, name, _, _ in string.Formatter().parse(self.requests[0]) if name)
        object.__setattr__(self, "slots", tuple(dict.fromkeys(names)))

    def wordings(self, *, held_out: bool = False) -> tuple[str, ...]:
        """The wordings that training sees, or the held-out one; empty where the plan has none held out."""
        return self.requests[SEEN_WORDINGS:] if held_out else self.requests[:SEEN_WORDINGS]


@dataclass(frozen=True)
class Policy:
    """A rule that forbids a tool for one value: the `{slot}` of its wording, `never move file {file}`."""

    tool: str
    slot: str  # also the name of the tool's argument
    wording: str


@dataclass(frozen=True)
class ToolFamily:
    """Tools over one kind of state, and the requests that are made of them.

    `values` draws a value for a slot type; `initial_state(rng, wanted)` draws a JSON state in which the wanted values (by
    slot type) exist, unless they are free, such as a text to write.
    """

    name: str
    tools: tuple[Tool, ...]
    plans: tuple[Plan, ...]
    foreign: tuple[Plan, ...]
    values: Mapping[str, Draw]
    initial_state: Callable[[Random, Mapping[str, Sequence[JSON]]], JSON]
    policies: tuple[Policy, ...] = ()
    held_out: bool = False  # only the split `families` draws from it

    def tool(self, name: str) -> Tool | None:
        """The tool of that name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)


SEEN_WORDINGS = 2  # of a plan's wordings; further ones are held out
_MAX_MISSES = 10_000  # a draw without any new value left must raise and not loop forever

_FAMILIES: dict[str, ToolFamily] = {}


def register(family: ToolFamily) -> ToolFamily:
    """Registers a family by its name, and returns it.

    Raises:
      ValueError: a name that is taken, or a family that cannot fill every task size.
    """
    if family.name in _FAMILIES:
        raise ValueError(f"tool family {family.name!r} is already registered")
    missing = {1, 2, 3} - {len(plan.steps) for plan in family.plans}
    if missing or not family.foreign:
        raise ValueError(f"tool family {family.name!r} needs plans of 1, 2 and 3 steps and foreign requests")
    _FAMILIES[family.name] = family
    return family


def family_names(*, held_out: bool = False) -> tuple[str, ...]:
    """The registered families that training draws from, or those held out, in order of registration."""
    return tuple(name for name, family in _FAMILIES.items() if family.held_out == held_out)


def get_family(name: str) -> ToolFamily:
    """The family of that name. Raises UserError when there is none."""
    if name not in _FAMILIES:
        raise UserError(f"tool family {name!r} is unknown; the known ones are {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


def pick(rng: Random, items: Sequence[Any]) -> Any:
    """One item, uniformly. Of `Random`, only `random()` is guaranteed to be the same in every Python version."""
    return items[int(rng.random() * len(items))]


class Stream(Random):
    """A stream of random numbers, and which values are drawn with it: those of training, or the reserved ones."""

    reserved = False


VALUE_LETTERS = "abcdefghijklmnopqrstuvwx"
_RESERVED = 3  # digits of each letter that training never draws: 72 of the 240 values


def is_reserved(value: str) -> bool:
    """Whether only the split `values` draws this value: `a0`, `a3`, `a6`, `b0`, `b3`, `b7`, ..."""
    return (int(value[1]) * 7 + VALUE_LETTERS.index(value[0])) % 10 < _RESERVED


def ids(letters: str) -> Draw:
    """Draws values such as `k4`: one of the letters (of VALUE_LETTERS) and a digit; one token of the nano model."""
    if not set(letters) <= set(VALUE_LETTERS):
        raise ValueError(f"ids({letters!r}): the nano tokenizer knows values that begin with {VALUE_LETTERS}")
    values = [f"{letter}{digit}" for letter in letters for digit in string.digits]
    reserved = [value for value in values if is_reserved(value)]
    seen = [value for value in values if not is_reserved(value)]

    def draw(rng: Random) -> str:
        return pick(rng, reserved if isinstance(rng, Stream) and rng.reserved else seen)

    return draw


def integers(low: int, high: int) -> Draw:
    """Draws whole numbers from low to high, both included."""

    def draw(rng: Random) -> int:
        return low + int(rng.random() * (high - low + 1))

    return draw


def draw_distinct(rng: Random, draw: Draw, count: int, taken: Sequence[JSON] = ()) -> list[Any]:
    """`count` distinct values that are not among the taken ones. Raises ValueError when there are too few."""
    values: list[Any] = []
    misses = 0
    while len(values) < count:
        value = draw(rng)
        if value not in taken and value not in values:
            values.append(value)
        elif (misses := misses + 1) > _MAX_MISSES:
            raise ValueError(
                f"too few values such as {value!r}: {len(taken) + count} distinct ones are needed"
            )
    return values
