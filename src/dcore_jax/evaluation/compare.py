"""Two evaluations of the same benchmark, item by item: differences with intervals, items won and lost."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.atomic import write_text_atomic
from dcore_jax.errors import UserError
from dcore_jax.evaluation.statistics import PairedDifference, paired_difference
from dcore_jax.evaluation.summary import Evaluation
from dcore_jax.report import Page, run_facts, shorten

_SHOWN = 40  # items on the page


@dataclass(frozen=True)
class Change:
    """An item that one run has right and the other wrong."""

    id: str
    category: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """`b` against `a`.

    Args:
      rows: by category, then `all`: paired difference over the items that both have.
      accuracies: by category, then `all`: of a and of b on those items.
      only_a, only_b: items that the other does not have; they are not compared.
    """

    a: str
    b: str
    rows: Mapping[str, PairedDifference]
    accuracies: Mapping[str, tuple[float, float]]
    items: Mapping[str, int]
    won: tuple[Change, ...]
    lost: tuple[Change, ...]
    only_a: int
    only_b: int

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return {
            "a": self.a,
            "b": self.b,
            "categories": {name: self._row(name) for name in self.rows if name != "all"},
            "all": self._row("all"),
            "only_a": self.only_a,
            "only_b": self.only_b,
            "won": [change.id for change in self.won],
            "lost": [change.id for change in self.lost],
        }

    def _row(self, name: str) -> dict[str, Any]:
        row, (a, b) = self.rows[name], self.accuracies[name]
        return {
            "a": a,
            "b": b,
            "difference": row.difference,
            "interval": list(row.interval),
            "won": row.won,
            "lost": row.lost,
            "p_value": row.p_value,
            "items": self.items[name],
        }


def compare(a: Evaluation, b: Evaluation, *, seed: int = 0) -> Comparison:
    """Compares two evaluations on the items that both have; an item of several trials counts with its mean reward.

    Raises:
      UserError: they are of different benchmarks, or share no item.
    """
    if a.benchmark != b.benchmark:
        raise UserError(f"{a.benchmark} and {b.benchmark} cannot be compared; give two runs of one benchmark")
    left, right = _rewards(a), _rewards(b)
    shared = [key for key in left if key in right]
    if not shared:
        raise UserError(f"the two evaluations of {a.benchmark} share no item")
    names = list(dict.fromkeys(category for category, _ in shared))
    rows, accuracies, items = {}, {}, {}
    for name in (*names, "all"):
        keys = [key for key in shared if name in (key[0], "all")]
        before, after = (np.array([rewards[key] for key in keys], float) for rewards in (left, right))
        rows[name] = paired_difference(before, after, seed=seed)
        accuracies[name] = (float(before.mean()), float(after.mean()))
        items[name] = len(keys)
    why_a, why_b = _reasons(a), _reasons(b)
    won = [key for key in shared if left[key] < 1.0 <= right[key]]
    lost = [key for key in shared if right[key] < 1.0 <= left[key]]
    return Comparison(
        a.model,
        b.model,
        rows,
        accuracies,
        items,
        tuple(Change(one, category, why_a.get((category, one), "")) for category, one in won),
        tuple(Change(one, category, why_b.get((category, one), "")) for category, one in lost),
        len(left) - len(shared),
        len(right) - len(shared),
    )


def write_comparison(folder: str | Path, comparison: Comparison) -> Path:
    """Writes `summary.json` and `report.html`; returns the page."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "summary.json", json.dumps(comparison.summary(), indent=2) + "\n")
    return comparison_page(comparison).write(folder / "report.html")


def comparison_text(comparison: Comparison) -> str:
    """The table that a terminal shows."""
    width = max(map(len, comparison.rows))
    lines = [f"b ({comparison.b}) minus a ({comparison.a}), 95 % paired bootstrap, exact McNemar:"]
    for name, row in comparison.rows.items():
        a, b = comparison.accuracies[name]
        lines.append(
            f"{name:<{width}}  {a:>7.2%} -> {b:>7.2%}  {_points(row)}  won {row.won:,}, lost {row.lost:,}, p={row.p_value:.3g}"
        )
    for name, number in (("a", comparison.only_a), ("b", comparison.only_b)):
        if number:
            lines.append(f"{number:,} items are only in {name}; not compared")
    return "\n".join(lines)


def comparison_page(comparison: Comparison) -> Page:
    """Differences by category, then the items won and lost."""
    page = Page(
        "dcore_jax · comparison",
        f"{comparison.b} against {comparison.a}",
        run_facts(comparison.b, further={"against": comparison.a, "items": f"{comparison.items['all']:,}"}),
        f"{_points(comparison.rows['all'])} percentage points: the difference with its 95 % interval.",
    )
    page.section("Categories").table(
        ["category", "items", "a", "b", "difference", "95 % interval", "won", "lost", "p (McNemar)"],
        [
            [
                name,
                comparison.items[name],
                *(f"{share:.2%}" for share in comparison.accuracies[name]),
                f"{100 * row.difference:+.2f}",
                f"{100 * row.interval.low:+.2f} to {100 * row.interval.high:+.2f}",
                row.won,
                row.lost,
                f"{row.p_value:.3g}",
            ]
            for name, row in comparison.rows.items()
        ],
    )
    for title, changes, of in (("Won", comparison.won, "a"), ("Lost", comparison.lost, "b")):
        if changes:
            section = page.section(title)
            section.text(
                f"{min(_SHOWN, len(changes))} of {len(changes):,}, with the reason why {of} is wrong.",
                note=True,
            )
            section.table(
                ["item", "category", "why"], [[c.id, c.category, shorten(c.reason)] for c in changes[:_SHOWN]]
            )
    return page


def _points(row: PairedDifference) -> str:
    low, high = (100 * end for end in row.interval)
    return f"{100 * row.difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def _rewards(evaluation: Evaluation) -> dict[tuple[str, str], float]:
    """Mean reward over trials by category and id."""
    found: dict[tuple[str, str], list[float]] = {}
    for item in evaluation.items:
        found.setdefault((item.category, item.id), []).append(item.reward)
    return {key: sum(rewards) / len(rewards) for key, rewards in found.items()}


def _reasons(evaluation: Evaluation) -> dict[tuple[str, str], str]:
    return {(item.category, item.id): item.reason for item in evaluation.items if not item.correct}
