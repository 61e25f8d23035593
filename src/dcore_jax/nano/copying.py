"""Lessons of copying that are no tool tasks: what a model of a million parameters must be taught before it can decompose.

A plan of three steps names three values of the request in their order; a small model that was only shown single requests repeats
the first of them. These lessons have no tools, no thoughts and no calls: a list is repeated, counted, looked up. Two of them have
the shape of a plan and of a list of calls, and none of their content; `COPYING_LESSONS` names each, so that what a base was
taught can be said, and a lesson left out.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from dcore_jax.errors import check_choice
from dcore_jax.toolworld.family import VALUE_LETTERS, pick

_NOUNS = (
    "file",
    "folder",
    "order",
    "user",
    "item",
    "text",
    "note",
    "city",
    "room",
    "card",
    "page",
    "team",
    "shelf",
    "bag",
)
_LONGEST = 6  # items of a list


def _joined(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]])


def _repeat(items: list[str], at: int) -> tuple[str, str]:
    return f"say again: {_joined(items)}", _joined(items)


def _lines(items: list[str], at: int) -> tuple[str, str]:
    return f"one a line: {_joined(items)}", "\n".join(f"step {i}: {item}." for i, item in enumerate(items, 1))


def _number(items: list[str], at: int) -> tuple[str, str]:
    return f"number {at + 1} of: {_joined(items)}", items[at]


def _next(items: list[str], at: int) -> tuple[str, str]:
    at = min(at, len(items) - 2)
    return f"after {items[at]} in: {_joined(items)}", items[at + 1]


def _brackets(items: list[str], at: int) -> tuple[str, str]:
    pairs = [item.split(" to ") for item in items]
    return f"in brackets: {_joined(items)}", "[" + ", ".join(
        ", ".join(f'{noun}="{value}"' for noun, value in (part.split(" ") for part in parts)) for parts in pairs
    ) + "]"  # fmt: skip


_LESSONS: dict[str, Callable[[list[str], int], tuple[str, str]]] = {
    "repeat": _repeat, "number": _number, "next": _next, "lines": _lines, "brackets": _brackets,
}  # fmt: skip
COPYING_LESSONS = tuple(_LESSONS)


def copying_records(
    count: int, seed: int = 0, lessons: Sequence[str] = COPYING_LESSONS
) -> Iterator[dict[str, Any]]:
    """Chat records of the lessons, in turns. All values of the tool world occur, those reserved for its split `values` too.

    Args:
      lessons: of COPYING_LESSONS. Raises UserError for another name.
    """
    for lesson in lessons:
        check_choice("copying lesson", lesson, COPYING_LESSONS)
    for index in range(count):
        rng = Random(f"copying {seed} {index}")
        number = 2 + int(rng.random() * (_LONGEST - 1))
        items = [_item(rng) for _ in range(number)]
        question, answer = _LESSONS[lessons[index % len(lessons)]](items, int(rng.random() * number))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "category": "copying", "id": f"copying-{seed}-{index}"}


def _item(rng: Random) -> str:
    """`folder a4`, or `file k2 to folder a4`."""
    parts = [f"{pick(rng, _NOUNS)} {_value(rng)}" for _ in range(1 + (rng.random() < 0.4))]
    return " to ".join(parts)


def _value(rng: Random) -> str:
    return f"{pick(rng, VALUE_LETTERS)}{int(rng.random() * 10)}"
