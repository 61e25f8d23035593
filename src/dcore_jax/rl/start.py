"""Rewards and advantages before the first update, by prompt: D-CORE's Figures 12 and 13, before and after self-distillation.

Two runs from two models, of one step each, are the figure: see docs/rl.md.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from dcore_jax.advantages import grpo
from dcore_jax.atomic import write_text_atomic
from dcore_jax.errors import UserError

START = "start.json"
_COLOURS = ("#b3541e", "#1f4e8c", "#5b7f3a", "#7a4f9a")


@dataclass(frozen=True)
class StartStatistics:
    """Of the rollouts of a run's first step, which its starting policy made."""

    mean: Float64[np.ndarray, "prompts"]  # of a prompt's scores
    std: Float64[np.ndarray, "prompts"]  # with n - 1
    advantages: Float64[np.ndarray, "responses"]  # GRPO's: (R - mean) / (std + 1e-6)
    rollouts: int  # of a prompt, the largest number of them

    def summary(self) -> dict[str, float | int]:
        """The figure in numbers."""
        return {
            "prompts": len(self.mean),
            "rollouts": self.rollouts,
            "mean": float(self.mean.mean()),
            "std": float(self.std.mean()),
            "std_zero": float(np.mean(self.std < 1e-6)),  # share of prompts without reward variance
            "advantage_size": float(np.abs(self.advantages).mean()),
            "advantage_zero": float(np.mean(np.abs(self.advantages) < 1e-6)),
        }


def start_statistics(run: str | Path) -> StartStatistics:
    """Those of a run's folder, from its rollouts.jsonl.

    Raises:
      UserError: no rollouts of a first step in the folder.
    """
    scores: list[float] = []
    groups: list[int] = []
    path = Path(run) / "rollouts.jsonl"
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row["step"] != 1:
                    break
                scores.append(row["reward"] + row["overlong_penalty"])
                groups.append(row["group"])
    if not scores:
        raise UserError(f"{run}: no rollouts of a first step in it; give the folder of an RL run")
    rewards, numbers = np.array(scores), np.array(groups)
    each = [rewards[numbers == group] for group in np.unique(numbers)]
    return StartStatistics(
        mean=np.array([own.mean() for own in each]),
        std=np.array([own.std(ddof=1) if len(own) > 1 else 0.0 for own in each]),
        advantages=np.asarray(grpo(rewards, numbers, np.ones((len(rewards), 1), bool)), np.float64)[:, 0],
        rollouts=max(map(len, each)),
    )


def write_start(run: str | Path) -> dict[str, Any]:
    """Writes `start.json` into a run's folder, the summary and every prompt's mean and deviation; returns the summary."""
    found = start_statistics(run)
    values = {"mean": found.mean, "std": found.std}
    fields = {**found.summary(), "by_prompt": {k: [round(float(x), 6) for x in v] for k, v in values.items()}}
    write_text_atomic(Path(run) / START, json.dumps(fields, indent=1) + "\n")
    return found.summary()


def plot_start(runs: Mapping[str, str | Path], out: str | Path) -> Path:
    """Standard deviation, mean and advantage at step 0 of several runs, as `{"before": folder, "after": folder}`; a PNG.

    Raises:
      UserError: no rollouts of a first step in a folder.
    """
    from matplotlib.figure import Figure

    found = {label: start_statistics(folder) for label, folder in runs.items()}
    figure = Figure(figsize=(11.0, 3.8), dpi=125, layout="constrained")
    panels = {
        "std": "standard deviation of a query's rewards",
        "mean": "mean of a query's rewards",
        "advantages": "advantage of a response",
    }
    for axes, (name, title) in zip(figure.subplots(1, 3), panels.items()):
        values = {label: getattr(statistics, name) for label, statistics in found.items()}
        low, high = (fold(map(fold, values.values())) for fold in (min, max))
        bins = np.linspace(low, high if high > low else low + 1, 25).tolist()
        for (label, own), colour in zip(values.items(), _COLOURS * len(values)):
            weights = np.full(len(own), 1 / len(own))
            axes.hist(
                own, bins=bins, weights=weights, histtype="step", linewidth=1.8, color=colour, label=label
            )
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("share of responses" if name == "advantages" else "share of queries")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    rollouts = ", ".join(f"{label}: {s.rollouts} rollouts a query" for label, s in found.items())
    figure.suptitle(f"Step 0 of RL ({rollouts})", fontsize=11)
    figure.savefig(out)
    return Path(out)
