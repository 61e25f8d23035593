"""Pictures of an RL run, drawn from its metrics.jsonl, evaluation.jsonl and token_entropy.json."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.metrics import read_metrics
from dcore_jax.report import moving_average

_DARK, _LIGHT, _WARM = "#1f4e8c", "#9db8d9", "#b3541e"
_REGIONS = ("thinking", "format", "name", "parameters", "outside")


def plot_run(folder: str | Path) -> list[Path]:
    """Every picture of a run folder: training dynamics, rewards by part and their spread, entropies. Returns their paths."""
    folder = Path(folder)
    rows = read_metrics(folder / "metrics.jsonl")
    evaluations = folder / "evaluation.jsonl"
    greedy = read_metrics(evaluations) if evaluations.exists() else []
    made = [
        plot_dynamics(rows, folder / "dynamics.png", greedy=greedy),
        plot_reward_parts(rows, folder / "reward_parts.png"),
        plot_reward_std(rows, folder / "reward_std.png"),
        plot_region_entropy(rows, folder / "region_entropy.png"),
    ]
    tokens = folder / "token_entropy.json"
    if tokens.exists():
        made.append(plot_token_entropy(json.loads(tokens.read_text()), folder / "token_entropy.png"))
    return made


def plot_dynamics(
    rows: Sequence[dict[str, Any]], out: str | Path, *, greedy: Sequence[dict[str, Any]] = ()
) -> Path:
    """Reward, entropy, response length, reflections, zero-variance groups and gradient norm by step (D-CORE Figure 6).

    A metric that is zero in every step gets no panel; the title names it.
    """

    def panel(axes: Any, key: str, label: str) -> None:
        values = [float(row[key]) for row in rows]
        steps = [row["step"] for row in rows]
        axes.plot(steps, values, color=_LIGHT, linewidth=0.8)
        axes.plot(steps, moving_average(values), color=_DARK, linewidth=1.8)
        if key == "reward" and greedy:
            points = [(row["step"], row["reward"]) for row in greedy]
            axes.plot(*zip(*points), "o-", color=_WARM, markersize=4, linewidth=1, label="greedy, held out")
            axes.legend(frameon=False)
        axes.set_title(label, loc="left", fontsize=10)

    panels = {
        "reward": "reward",
        "entropy": "entropy [nats per token]",
        "response_length": "response length [tokens]",
        "zero_variance_groups": "share of groups without reward variance",
        "reflections_per_thought": "reflection words per thought",
        "gradient_norm": "gradient norm",
    }

    live = {key: label for key, label in panels.items() if any(_nonzero(row[key]) for row in rows)}
    dead = [label for key, label in panels.items() if key not in live]

    def draw(figure: Any) -> None:
        lines = 2 if len(live) > 3 else 1
        grid = figure.subplots(lines, max(1, -(-len(live) // lines)), sharex=True, squeeze=False)
        every = list(grid.flat)
        for axes, (key, label) in zip(every, live.items()):
            panel(axes, key, label)
            axes.grid(alpha=0.25)
        for axes in every[len(live) :]:
            axes.set_axis_off()
        title = f"Training dynamics, {len(rows):,} steps"
        figure.suptitle(f"{title}; always 0: {', '.join(dead)}" if dead else title, fontsize=11)
        figure.supxlabel("step", fontsize=10)

    return _save(draw, out, (11.0, 5.6 if len(live) > 3 else 3.2))


def plot_reward_parts(rows: Sequence[dict[str, Any]], out: str | Path) -> Path:
    """The mean reward by step and what each of its parts contributes, weighted as in the sum; weights other than 1 are named."""
    parts = [
        key
        for key in rows[-1]
        if key.startswith("reward_") and any(_nonzero(row.get(key, 0.0)) for row in rows)
    ]
    weights = {
        key.removeprefix("weight/"): value for key, value in rows[-1].items() if key.startswith("weight/")
    }

    def label(part: str) -> str:
        own = [name for name in weights if len(weights) == 1 or part == name or part.startswith(f"{name}.")]
        weight = weights[max(own, key=len)] if own else 1.0
        name = printable(part)
        return name if weight == 1 else f"{name} (weight {weight:g})"

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for key in ("reward", *parts):
            points = [(row["step"], float(row[key])) for row in rows if key in row]
            steps, values = zip(*points)
            width, color = (2.2, _DARK) if key == "reward" else (1.4, None)
            name = "total" if key == "reward" else label(key.removeprefix("reward_"))
            axes.plot(steps, moving_average(values), linewidth=width, color=color, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("contribution to the reward")
        axes.set_title("Reward by part", loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25)

    return _save(draw, out, (6.0, 4.0))


def plot_reward_std(rows: Sequence[dict[str, Any]], out: str | Path) -> Path:
    """How the standard deviation of reward within a prompt's group is distributed, early and late (D-CORE Figure 5a)."""
    third = max(1, len(rows) // 3)
    parts = {
        "first third of the steps": np.concatenate([row["group_reward_std"] for row in rows[:third]]),
        "last third": np.concatenate([row["group_reward_std"] for row in rows[-third:]]),
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        highest = max(float(values.max()) for values in parts.values())
        bins = np.linspace(0, highest or 1.0, 25).tolist()
        for (label, values), color in zip(parts.items(), (_LIGHT, _DARK)):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(
                values, bins=bins, weights=weights, histtype="step", linewidth=1.8, color=color, label=label
            )
        axes.set_xlabel("standard deviation of reward within a group")
        axes.set_ylabel("share of groups")
        axes.set_title("Spread of reward within a group", loc="left", fontsize=10)
        axes.legend(frameon=False)

    return _save(draw, out, (6.0, 4.0))


def plot_token_entropy(extremes: dict[str, list[dict[str, Any]]], out: str | Path) -> Path:
    """The tokens sampled at the highest and at the lowest mean entropy (D-CORE Figures 5b and 14)."""

    def draw(figure: Any) -> None:
        figure.suptitle("Tokens by the mean entropy at which they were sampled", fontsize=11)
        for axes, kind, color in zip(figure.subplots(1, 2), ("highest", "lowest"), (_WARM, _DARK)):
            rows = extremes[kind][::-1]
            axes.barh(range(len(rows)), [row["entropy"] for row in rows], color=color)
            names = [printable(row["token"]) for row in rows]
            axes.set_yticks(range(len(rows)), names, fontsize=8)
            axes.set_title(f"{kind} entropy [nats]", loc="left", fontsize=10)

    rows = max(map(len, extremes.values()), default=0)
    return _save(draw, out, (8.0, max(4.5, 0.22 * rows + 0.8)))


def plot_region_entropy(rows: Sequence[dict[str, Any]], out: str | Path) -> Path:
    """Mean entropy of each region of a response by step (ResT, appendix D.1)."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for region in _REGIONS:
            points = [(row["step"], row[f"entropy_{region}"]) for row in rows if f"entropy_{region}" in row]
            if points:
                steps, values = zip(*points)
                axes.plot(steps, moving_average(values), linewidth=1.6, label=region)
        axes.set_xlabel("step")
        axes.set_ylabel("entropy [nats per token]")
        axes.set_title("Entropy by region of a response", loc="left", fontsize=10)
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)

    return _save(draw, out, (6.0, 4.0))


def plot_comparison(runs: dict[str, Sequence[str | Path]], out: str | Path, *, key: str = "reward") -> Path:
    """One metric of several runs, by label the runs of its seeds: thin lines each, a thick one for their mean."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for (label, folders), color in zip(runs.items(), (_DARK, _WARM, "#5b7f3a", "#7a4f9a") * len(runs)):
            series = [
                [float(row[key]) for row in read_metrics(Path(folder) / "metrics.jsonl")]
                for folder in folders
            ]
            length = min(map(len, series))
            steps = range(1, length + 1)
            for values in series:
                axes.plot(steps, moving_average(values[:length]), color=color, linewidth=0.6, alpha=0.6)
            mean = np.mean([values[:length] for values in series], axis=0).tolist()
            axes.plot(
                steps,
                moving_average(mean),
                color=color,
                linewidth=2,
                label=f"{printable(label)} ({len(series)} seeds)",
            )
        axes.set_xlabel("step")
        axes.set_ylabel(printable(key))
        axes.set_title(f"{printable(key)}, by run", loc="left", fontsize=10)
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)

    return _save(draw, out, (6.0, 4.0))


def _nonzero(value: Any) -> bool:
    """Whether a metric's value is a finite number other than zero; values that are not finite are written as text."""
    return math.isfinite(float(value)) and float(value) != 0


def printable(token: str) -> str:
    """A token as a label: escapes for what the font of the pictures has no glyph of."""
    shown = "".join(c if c.isascii() or "\xa1" <= c < "\u0250" else ascii(c)[1:-1] for c in repr(token)[1:-1])
    return shown.replace("$", r"\$") or "(empty)"


def _save(draw: Callable[[Any], None], out: str | Path, size: tuple[float, float]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=125, layout="constrained")
    draw(figure)
    figure.savefig(out)
    return Path(out)
