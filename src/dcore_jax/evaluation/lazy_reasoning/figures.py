"""D-CORE's figures of lazy reasoning as pictures: 3a, 3b (and 7b), 8, 9 and 10."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.evaluation.lazy_reasoning.behaviours import BEHAVIOURS
from dcore_jax.evaluation.lazy_reasoning.measure import (
    PUBLISHED,
    LazyReport,
    Measured,
    behaviour_shares,
    share_beyond,
)

_BLUE, _ORANGE, _GREY = "#1f4e8c", "#b3541e", "#9a9a9a"
_BEHAVIOUR_COLOURS = ("#b3541e", "#c9a227", "#1f4e8c", "#9db8d9")
TOKEN_THRESHOLDS = (100, 200, 300, 400, 600, 800)
REFLECTION_THRESHOLDS = (1, 2, 3, 4, 6, 8)


def draw_figures(report: LazyReport, folder: str | Path) -> list[Path]:
    """Writes every figure as a PNG into the folder; returns the files."""
    folder = Path(folder)
    return [
        _save(lambda axes: _behaviours(axes, report), folder / "figure_3a_behaviours.png", 1),
        _save(lambda axes: _ratios(axes, report), folder / "figure_3b_lazy_ratio.png", 1),
        _save(
            lambda axes: _densities(axes, report.groups, lambda one: one.tokens, "tokens of a thought"),
            folder / "figure_8_length.png",
            len(report.groups),
        ),
        _save(
            lambda axes: _densities(
                axes, report.groups, lambda one: one.reflections, "reflections in a thought"
            ),
            folder / "figure_9_reflections.png",
            len(report.groups),
        ),
        _save(
            lambda axes: _thresholds(axes, report.groups),
            folder / "figure_10_thresholds.png",
            len(report.groups),
        ),
    ]


def _behaviours(axes: Sequence[Any], report: LazyReport) -> None:
    (ax,) = axes
    rows = {}
    for name, found in report.groups.items():
        for label, some in (("right", True), ("wrong", False)):
            part = [one for one in found if one.thought.correct is some]
            if part:
                rows[f"{name}, {label} ({len(part):,})"] = behaviour_shares(part)
    left = np.zeros(len(rows))
    for behaviour, colour in zip(BEHAVIOURS, _BEHAVIOUR_COLOURS, strict=True):
        shares = np.array([row[behaviour] for row in rows.values()])
        ax.barh(list(rows), shares, left=left, color=colour, label=behaviour)
        left += shares
    ax.invert_yaxis()
    ax.set_xlabel("share of sentences")
    ax.set_title(f"{report.model}: four behaviours (Figure 3a)", loc="left")
    ax.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _ratios(axes: Sequence[Any], report: LazyReport) -> None:
    (ax,) = axes
    names = list(report.groups)
    rows: dict[str, Mapping[str, float]] = {
        f"{report.model}, {report.rule}'s rule": {n: 100 * report.ratio(n).share for n in names}
    }
    rows |= {label: row for label, row in PUBLISHED.items() if any(name in row for name in names)}
    width = 0.8 / len(rows)
    for number, ((label, row), colour) in enumerate(zip(rows.items(), (_BLUE, _GREY, _ORANGE))):
        at = np.arange(len(names)) + (number - (len(rows) - 1) / 2) * width
        shown = ax.bar(at, [row.get(name, np.nan) for name in names], width, color=colour, label=label)
        ax.bar_label(shown, fmt="%.1f", fontsize=8)
    ax.set_xticks(np.arange(len(names)), names)
    ax.set_ylabel("lazy thoughts [%]")
    ax.set_title("Lazy reasoning (Figures 3b and 7b)", loc="left")
    ax.legend(frameon=False)


def _densities(
    axes: Sequence[Any],
    groups: Mapping[str, Sequence[Measured]],
    value: Callable[[Measured], float],
    label: str,
) -> None:
    for ax, (name, found) in zip(axes, groups.items(), strict=True):
        highest = max((value(one) for one in found), default=1) or 1
        edges = np.linspace(0, highest, 31)
        for outcome, colour in ((True, _BLUE), (False, _ORANGE)):
            values = [value(one) for one in found if one.thought.correct is outcome]
            if values:
                shown = f"{'right' if outcome else 'wrong'} ({len(values):,})"
                ax.hist(
                    values, edges, density=True, histtype="stepfilled", alpha=0.35, color=colour, label=shown
                )
        ax.set_xlabel(label)
        ax.set_ylabel("density")
        ax.set_title(name, loc="left")
        ax.legend(frameon=False)


def _thresholds(axes: Sequence[Any], groups: Mapping[str, Sequence[Measured]]) -> None:
    for ax, (name, found) in zip(axes, groups.items(), strict=True):
        shares = np.array(
            [[100 * share_beyond(found, t, r) for r in REFLECTION_THRESHOLDS] for t in TOKEN_THRESHOLDS]
        )
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=max(shares.max(), 1.0), aspect="auto")
        for (i, j), share in np.ndenumerate(shares):
            dark = share > 0.6 * max(shares.max(), 1.0)
            ax.text(
                j, i, f"{share:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        ax.set_xticks(range(len(REFLECTION_THRESHOLDS)), [f">= {r}" for r in REFLECTION_THRESHOLDS])
        ax.set_yticks(range(len(TOKEN_THRESHOLDS)), [f"> {t}" for t in TOKEN_THRESHOLDS])
        ax.set_xlabel("reflections")
        ax.set_ylabel("tokens")
        ax.set_title(f"{name}: thoughts beyond both [%]", loc="left")


def _save(draw: Callable[[Sequence[Any]], None], out: Path, columns: int) -> Path:
    from matplotlib.figure import Figure

    columns = max(columns, 1)
    figure = Figure(figsize=(7.0 if columns == 1 else 4.6 * columns, 4.2), dpi=125, layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    draw(axes)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out
