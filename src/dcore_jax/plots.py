"""Pictures of a run, drawn from its metrics.jsonl."""

from pathlib import Path

from dcore_jax.metrics import read_metrics
from dcore_jax.report import moving_average

__all__ = ["moving_average", "plot_loss"]


def plot_loss(metrics: str | Path, out: str | Path) -> Path:
    """Training loss by step, raw and smoothed, above learning rate and gradient norm; a PNG of about 1,000 x 700 pixels."""
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    steps = [row["step"] for row in rows]
    losses = [float(row["loss"]) for row in rows]
    figure = Figure(figsize=(8, 5.6), dpi=125, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot(steps, losses, color="#9db8d9", linewidth=0.8, label="each step")
    top.plot(steps, moving_average(losses), color="#1f4e8c", linewidth=1.8, label="moving average")
    if min(losses) > 0 and max(losses) > 30 * losses[-1]:
        top.set_yscale("log")
    top.set_ylabel("loss [nats per token]")
    top.set_title(f"SFT, {len(steps):,} steps: loss {losses[0]:.3f} to {losses[-1]:.3f}", loc="left")
    top.legend(frameon=False)
    bottom.plot(steps, [row["learning_rate"] for row in rows], color="#b3541e", label="learning rate")
    bottom.set_ylabel("learning rate", color="#b3541e")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    norm = bottom.twinx()
    norm.plot(steps, [float(row["gradient_norm"]) for row in rows], color="#5b7f3a", linewidth=0.8)
    norm.set_ylabel("gradient norm", color="#5b7f3a")
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top"]].set_visible(False)
    figure.savefig(out)
    return Path(out)
