"""What the stages of the method make of the same held-out tasks: `summary.json` and `report.html`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dcore_jax.atomic import write_text_atomic
from dcore_jax.calls import render_calls
from dcore_jax.evaluation.toolworld import Attempt
from dcore_jax.metrics import read_metrics
from dcore_jax.report import Count, Curve, Page, Turn, run_facts, turns_of

# Groups of tasks by name in summary.json.
GROUPS: dict[str, Callable[[Attempt], bool]] = {
    "all": lambda attempt: True,
    "composed": lambda attempt: len(attempt.task.reference) > 1,
    "sequential": lambda attempt: attempt.task.kind == "sequential",
    "parallel_2_3": lambda attempt: _parallel(attempt, 2, 3),
    "parallel_4_5": lambda attempt: _parallel(attempt, 4, 5),
    "mixed": lambda attempt: attempt.task.kind == "mixed",
}
_LABELS = {"parallel_2_3": "parallel, 2 and 3 calls", "parallel_4_5": "parallel, 4 and 5 calls"}
_COMPARED = 8  # tasks shown side by side
_LOSS = (Curve("loss", "SFT: loss", "nats per token", log="yes"),)
_REWARD = (
    Curve("reward", "DA-GRPO: sampled reward", "reward of 4"),
    Curve("entropy", "DA-GRPO: entropy", "nats"),
)


def count_stages(stages: Mapping[str, Sequence[Attempt]]) -> dict[str, dict[str, Count]]:
    """Whole tasks by group and stage; a group without tasks is left out."""
    counts = {
        group: {
            name: Count(sum(a.solved for a in attempts if belongs(a)), sum(map(belongs, attempts)))
            for name, attempts in stages.items()
        }
        for group, belongs in GROUPS.items()
    }
    return {group: found for group, found in counts.items() if any(count.whole for count in found.values())}


def write_stages(
    folder: Path, stages: Mapping[str, Sequence[Attempt]], seconds: Mapping[str, float], *, model: str
) -> Path:
    """Writes `summary.json` and `report.html` into the folder, whose `sft/` and `rl/` hold the runs; returns the page.

    Args:
      stages: attempts by the stage's name, at the same tasks, in the order of the method.
      seconds: when each part began, and `all`.
    """
    counts = count_stages(stages)
    accuracy = {
        name.lower().replace("-", "_"): {
            group: {"solved": found[name].part, "tasks": found[name].whole, "accuracy": found[name].share}
            for group, found in counts.items()
        }
        for name in stages
    }
    summary = {"seconds": seconds["all"], "began": dict(seconds), "model": model, "stages": accuracy}
    write_text_atomic(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    first, *_, last = stages
    whole = counts["all"]
    page = Page(
        "dcore_jax · demo",
        "From a lazy base to a model that decomposes",
        run_facts(model, seconds=seconds["all"], further={"tasks": f"{whole[first].whole} held out"}),
        f"Whole held-out tasks: {', '.join(f'{name} {count.share:.0%}' for name, count in whole.items())}.",
    )
    page.section("Held-out tasks").stages(
        {_LABELS.get(group, group): found for group, found in counts.items()}
    )
    curves = page.section("Curves")
    for run, chosen in (("sft", _LOSS), ("rl", _REWARD)):
        if (path := folder / run / "metrics.jsonl").exists():
            curves.curves(read_metrics(path), chosen)
    shown = page.section("The same tasks before and after")
    for one, other in _changed(stages[first], stages[last]):
        shown.compare(
            f"{one.task.kind}, {len(one.task.reference)} calls",
            one.task.query,
            _turns(one),
            _turns(other),
            names=(first, last),
            right=(one.solved, other.solved),
            reference=render_calls(one.task.reference, "python"),
        )
    return page.write(folder / "report.html")


def _parallel(attempt: Attempt, low: int, high: int) -> bool:
    return attempt.task.kind == "parallel" and low <= len(attempt.task.reference) <= high


def _changed(before: Sequence[Attempt], after: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    """Tasks of several calls: those that became right, the longest first, then one that did not, and one that was lost."""
    pairs = [pair for pair in zip(before, after, strict=True) if len(pair[0].task.reference) > 1]
    gained = [pair for pair in pairs if pair[1].solved and not pair[0].solved]
    gained.sort(key=lambda pair: -len(pair[0].task.reference))
    lost = [pair for pair in pairs if pair[0].solved and not pair[1].solved]
    failed = [pair for pair in pairs if not pair[1].solved and not pair[0].solved]
    return gained[: _COMPARED - 2] + failed[:1] + lost[:1]


def _turns(attempt: Attempt) -> list[Turn]:
    return [turn for text in attempt.turns for turn in turns_of(text)]
