"""The closing table of a run."""

import resource

from dcore_jax.metrics import read_metrics
from dcore_jax.sft.run import SFTResult


def summary(result: SFTResult) -> str:
    """A small table: what was done, how fast, and where it lies. Rates are medians over the steps of the whole run."""
    rows = read_metrics(result.output / "metrics.jsonl")
    if not rows:
        return f"no step done yet in {result.output}"

    def median(key: str) -> float:
        values = sorted(row[key] for row in rows if key in row)
        return values[len(values) // 2]

    lines = [
        ("steps", f"{result.step:,} of {result.total_steps:,}"),
        ("loss", f"{float(rows[0]['loss']):.4f} -> {float(rows[-1]['loss']):.4f} nats per token"),
        (
            "speed",
            f"{median('tokens_per_second'):,.0f} tokens/s, {median('loss_tokens_per_second'):,.0f} of them with loss",
        ),
        ("packing fill", f"{sum(row['packing_fill'] for row in rows) / len(rows):.1%}"),
        ("time", f"{sum(row['seconds'] for row in rows):,.0f} s in steps"),
        ("host memory", f"{peak_host_memory() / 1e9:.2f} GB peak"),
        ("checkpoint", str(result.output / "checkpoints" / str(result.step))),
        ("curve", str(result.output / "loss.png")),
        ("report", str(result.output / "report.html")),
        ("export", f"dcore export --run {result.output} --output hf/"),
    ]
    if any("mfu" in row for row in rows):
        lines.insert(3, ("MFU", f"{median('mfu'):.1%}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def peak_host_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
