"""The section of a run's page that shows what was evaluated while it trained."""

from pathlib import Path

from dcore_jax.metrics import read_metrics
from dcore_jax.player.evaluators import EVALUATIONS, Best
from dcore_jax.report import Curve, Page

_ROWS = 20  # the last ones, in the table


def add_evaluations(page: Page, output: Path) -> None:
    """Adds curves, the last values and the best step; nothing where nothing was evaluated."""
    path = output / EVALUATIONS
    rows = read_metrics(path) if path.exists() else []
    if not rows:
        return
    names = [name for name in rows[-1] if name != "step"]
    section = page.section("Evaluations while it trained")
    section.curves(rows, [Curve(name, name, _unit(name), smoothed=False, log="no") for name in names])
    section.table(["step", *names], [[row.get(key) for key in ("step", *names)] for row in rows[-_ROWS:]])
    if best := Best.of_run(output):
        section.text(f"Best: step {best.step}, {best.name} {best.value:.4g}; its checkpoint is kept.")


def _unit(name: str) -> str:
    return "nats per token" if name == "eval_loss" else "share of items"
