"""The closing table of a run."""

import json

from dcore_jax.metrics import read_metrics
from dcore_jax.rl.run import RLResult


def summary(result: RLResult) -> str:
    """A small table: what was done, what it changed, how fast, and where it lies. Changes compare means of a few steps."""
    rows = read_metrics(result.output / "metrics.jsonl")
    if not rows:
        return f"no step done yet in {result.output}"
    few = max(1, min(5, len(rows) // 4))

    def change(key: str, form: str) -> str:
        first, last = (sum(float(row[key]) for row in part) / few for part in (rows[:few], rows[-few:]))
        return f"{first:{form}} -> {last:{form}}"

    def share(phase: str) -> str:
        spent = sum(row.get(f"seconds_{phase}", 0.0) for row in rows)
        return f"{phase} {spent / max(sum(row['seconds'] for row in rows), 1e-9):.0%}"

    parts = [key.removeprefix("reward_") for key in rows[-1] if key.startswith("reward_")]
    lines = [
        ("steps", f"{result.step:,} of {result.total_steps:,}"),
        ("reward", f"{change('reward', '.3f')}, mean of {few} steps each"),
        ("by part", ", ".join(f"{part} {change(f'reward_{part}', '.3f')}" for part in parts)),
        ("correct", change("correct", ".1%")),
        ("flat groups", change("zero_variance_groups", ".0%")),
        ("entropy", f"{change('entropy', '.3f')} nats"),
        ("response", f"{change('response_length', '.0f')} tokens"),
        (
            "time",
            f"{sum(row['seconds'] for row in rows):,.0f} s in steps: {', '.join(map(share, ('rollout', 'logprobs', 'update')))}",
        ),
        ("checkpoint", str(result.output / "checkpoints" / str(result.step))),
        ("report", str(result.output / "report.html")),
        ("pictures", ", ".join(sorted(path.name for path in result.output.glob("*.png")))),
    ]
    evaluations = result.output / "evaluation.jsonl"
    found = (
        [json.loads(line) for line in evaluations.read_text().splitlines()] if evaluations.exists() else []
    )
    if len(found) > 1:
        before, after = found[0], found[-1]
        text = f"reward {before['reward']:.3f} -> {after['reward']:.3f}, "
        text += f"correct {before['correct']:.1%} -> {after['correct']:.1%}"
        lines.insert(1, ("greedy", f"{text} on {after['prompts']} fixed prompts"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
