"""What every evaluation writes: `summary.json`, `items.jsonl` and `report.html`; and how it is read again.

summary.json  {"benchmark", "model", "categories": {name: {"correct", "total", "accuracy"}}, "all", "intervals", "left_out", ...}
items.jsonl   a line for each item that was scored: {"id", "category", "trial", "reward", "correct", "reason"}
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.atomic import write_text_atomic
from dcore_jax.errors import UserError
from dcore_jax.evaluation.statistics import Interval, bootstrap_interval
from dcore_jax.report import Count, Page, run_facts, shorten

_SHOWN = 40  # wrong items listed on a page


@dataclass(frozen=True)
class Item:
    """One scored answer.

    Args:
      id: the benchmark's; an id is unique within its category and trial.
      reward: from 0 to 1; an item is correct where it is 1.
      trial: 0 to k - 1 where an item is answered several times.
      reason: why it is wrong, in a line.
    """

    id: str
    category: str
    reward: float
    trial: int = 0
    reason: str = ""

    @property
    def correct(self) -> bool:
        """Whether the whole reward was earned."""
        return self.reward >= 1.0


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a benchmark for one model.

    Args:
      items: in the order of the benchmark.
      left_out: what was not scored, or scored as wrong because it was damaged: a line for each, with file and line number.
      published: rows of papers beside ours: by name, accuracy in percent by category.
      settings: version, mode, engine, sampling: shown on the page, kept in the summary.
      metrics: further numbers by name, such as `pass^2`.
    """

    benchmark: str
    model: str
    items: tuple[Item, ...]
    left_out: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, Count]:
        """Correct of total by category, in the order in which the categories first appear."""
        total = Counter(item.category for item in self.items)
        correct = Counter(item.category for item in self.items if item.correct)
        return {name: Count(correct[name], whole) for name, whole in total.items()}

    def intervals(self) -> dict[str, Interval]:
        """95 % bootstrap interval of the mean reward by category, and of `all`; the trials of an item stay together."""
        rewards: dict[tuple[str, str], list[float]] = {}
        for item in self.items:
            rewards.setdefault((item.category, item.id), []).append(item.reward)
        means: dict[str, list[float]] = {}
        for (category, _), of_item in rewards.items():
            for name in (category, "all"):
                means.setdefault(name, []).append(sum(of_item) / len(of_item))
        return {name: bootstrap_interval(np.array(values)) for name, values in means.items()}

    def overall(self) -> Count:
        """Correct of all items: the micro average."""
        return Count(sum(item.correct for item in self.items), len(self.items))


def write_evaluation(folder: str | Path, evaluation: Evaluation, *, seconds: float) -> Path:
    """Writes `items.jsonl`, `report.html` and, last, `summary.json` into the folder; returns the page."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({**asdict(item), "correct": item.correct}) for item in evaluation.items]
    write_text_atomic(folder / "items.jsonl", "".join(line + "\n" for line in lines))
    page = evaluation_page(evaluation, seconds=seconds).write(folder / "report.html")
    write_text_atomic(folder / "summary.json", json.dumps(_summary(evaluation, seconds), indent=2) + "\n")
    return page


def read_evaluation(folder: str | Path) -> Evaluation:
    """The evaluation that a folder holds, for comparisons; without its published rows.

    Raises:
      UserError: the folder holds no finished evaluation.
    """
    folder = Path(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows = [
            json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        items = tuple(
            Item(row["id"], row["category"], row["reward"], row["trial"], row["reason"]) for row in rows
        )
        return Evaluation(
            summary["benchmark"],
            summary["model"],
            items,
            tuple(summary["left_out"]),
            settings=summary["settings"],
            metrics=summary["metrics"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no evaluation ({type(error).__name__}: {error}); give a folder that `dcore eval` wrote"
        ) from error


def summary_text(evaluation: Evaluation) -> str:
    """The table that a terminal shows: a line for each category, then all of them and what was left out."""
    counts = evaluation.counts()
    width = max((len(name) for name in (*counts, "all")), default=0)
    lines = [
        f"{name:<{width}}  {count.share:>7.2%}  {count.part:>6,} of {count.whole:,}"
        for name, count in (*counts.items(), ("all", evaluation.overall()))
    ]
    lines += [f"{name}: {_number(value)}" for name, value in evaluation.metrics.items()]
    if evaluation.left_out:
        lines.append(f"{len(evaluation.left_out)} damaged or left out:")
        lines += [f"  {line}" for line in evaluation.left_out[:10]]
        if len(evaluation.left_out) > 10:
            lines.append(f"  ... {len(evaluation.left_out) - 10} more in summary.json")
    return "\n".join(lines)


def evaluation_page(evaluation: Evaluation, *, seconds: float) -> Page:
    """The page: counts and bars by category, published rows, what was left out, the first wrong items with their reasons."""
    counts, overall = evaluation.counts(), evaluation.overall()
    page = Page(
        f"dcore_jax · {evaluation.benchmark}",
        f"{evaluation.model} on {evaluation.benchmark}",
        run_facts(evaluation.model, seconds=seconds, further={"items": f"{overall.whole:,}"}),
        f"{overall.share:.2%} of {overall.whole:,} items are right.",
    )
    page.section("Categories").stages(
        {name: {evaluation.model: count} for name, count in (*counts.items(), ("all", overall))}, of="items"
    )
    if evaluation.metrics:
        rows = [(name, _number(value)) for name, value in evaluation.metrics.items()]
        page.section("Further numbers").settings(rows)
    if evaluation.published:
        theirs = dict.fromkeys(name for row in evaluation.published.values() for name in row)
        ours = {name: 100 * count.share for name, count in counts.items()}
        # A paper reports groups of categories, which are metrics of an evaluation.
        ours |= {name: 100 * evaluation.metrics[name] for name in theirs if name in evaluation.metrics}
        columns = list(dict.fromkeys((*theirs, *ours)))
        table = [(evaluation.model, ours), *evaluation.published.items()]
        section = page.section("Beside published figures (percent)")
        section.table(
            ["model", *columns],
            [[name, *(round(row[c], 2) if c in row else None for c in columns)] for name, row in table],
        )
    if evaluation.left_out:
        section = page.section("Damaged or left out")
        section.table(["what"], [[line] for line in evaluation.left_out[:_SHOWN]])
    wrong = [item for item in evaluation.items if not item.correct]
    if wrong:
        section = page.section("Wrong answers")
        if len(wrong) > _SHOWN:
            section.text(f"The first {_SHOWN} of {len(wrong):,}; all are in items.jsonl.", note=True)
        section.table(
            ["item", "category", "why"],
            [[item.id, item.category, shorten(item.reason)] for item in wrong[:_SHOWN]],
        )
    if evaluation.settings:
        page.section("Settings").settings([(name, str(value)) for name, value in evaluation.settings.items()])
    return page


def _summary(evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    return {
        "benchmark": evaluation.benchmark,
        "model": evaluation.model,
        "categories": {name: _count(count) for name, count in evaluation.counts().items()},
        "all": _count(evaluation.overall()),
        "intervals": {name: list(ends) for name, ends in evaluation.intervals().items()},
        "metrics": dict(evaluation.metrics),
        "left_out": list(evaluation.left_out),
        "settings": dict(evaluation.settings),
        "seconds": round(seconds, 3),
    }


def _count(count: Count) -> dict[str, Any]:
    return {"correct": count.part, "total": count.whole, "accuracy": count.share}


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
