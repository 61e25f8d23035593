"""What RL gains on the nano model: the default run of `dcore rl` by algorithm and seed, and a start without variance.

    python benchmarks/rl_toolworld.py [--algorithms grpo,da_grpo] [--seeds 0,1,2] [--output FOLDER] [-- --steps 200 ...]

Two measurements, each with every algorithm and seed, each run a process of its own; what follows `--` goes to `train_rl.py`.
A run that is already in its folder is not done again.

1. The default run. Its possible gain is what the first steps' mean reward falls short of the largest possible reward.
2. A random nano model whose answers all earn the same: how far the parameters move, |theta - theta_0|.

Prints Markdown and writes `rl_toolworld.png`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from heading import heading

REPOSITORY = Path(__file__).parents[1]
WINDOW = 5  # steps at either end of a run that are averaged
LARGEST = 4.0  # D-CORE's reward: 1 for the format and 3 for the calls
STILL_STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", default="grpo,da_grpo")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=Path("runs/rl_toolworld"))
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    args = parser.parse_args(own)
    further = sys.argv[len(own) + 2 :]
    names = [(name, int(seed)) for name in args.algorithms.split(",") for seed in args.seeds.split(",")]

    started = time.perf_counter()
    runs = {key: args.output / f"{key[0]}-seed{key[1]}" for key in names}
    still = {key: args.output / f"{key[0]}-seed{key[1]}-still" for key in names}
    for (algorithm, seed), folder in runs.items():
        train(folder, "--algorithm", algorithm, "--seed", str(seed), *further)
    model = random_model(args.output)
    for (algorithm, seed), folder in still.items():
        small = "--steps {} --prompts 4 --updates 1 --rollout.group 4 --rollout.max-response 16 --evaluation.prompts 0"
        config = ["--config", str(REPOSITORY / "configs" / "rl_nano.yaml"), "--model", str(model)]
        # The KL term would move GRPO too, once anything has moved it.
        alone = "--data toolworld:512,kinds=single,subtasks=1 --algorithm.kl-coefficient 0"
        keep = f"--checkpoint.every 1 --checkpoint.keep {STILL_STEPS + 1}"
        options = [*small.format(STILL_STEPS).split(), *keep.split(), *alone.split()]
        train(folder, *config, "--algorithm", algorithm, "--seed", str(seed), *options)

    print("\n" + heading(["jax", "flax"]))
    print(f"{time.perf_counter() - started:,.0f} s for the runs that were not there yet\n")
    print(gains(runs))
    moved = {key: distances(folder, model) for key, folder in still.items()}
    print(movements(moved, still))
    print(f"picture: {draw(runs, moved, args.output / 'rl_toolworld.png')}")


def train(folder: Path, *options: str) -> None:
    """One run to its end, or nothing where it has ended; its own words go to <folder>.log."""
    if (folder / "dynamics.png").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "train_rl.py"),
        "--output",
        str(folder),
        *options,
    ]
    print(f"{folder.name} ...", flush=True)
    with folder.with_suffix(".log").open("a") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            sys.exit(f"{' '.join(command)} failed; its last lines are in {log.name}")


def random_model(output: Path) -> Path:
    from dcore_jax.nano import NanoConfig, embedded_model

    return embedded_model(output / "random", NanoConfig(hidden=64, layers=1), seed=0)


def gains(runs: dict[tuple[str, int], Path]) -> str:
    lines = [
        "| algorithm | seed | steps | sampled reward of 4 | share of the possible gain | sampled correct | greedy correct "
        "held out | s a step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    shares: dict[str, list[float]] = {}
    for (algorithm, seed), folder in runs.items():
        rows, greedy = read(folder / "metrics.jsonl"), read(folder / "evaluation.jsonl")
        reward, correct = ends(rows, "reward"), ends(rows, "correct")
        share = (reward[1] - reward[0]) / (LARGEST - reward[0])
        shares.setdefault(algorithm, []).append(share)
        seconds = statistics.median(
            sum(value for name, value in row.items() if name.startswith("seconds_")) for row in rows
        )
        held_out = f"{greedy[0]['correct']:.2f} -> {greedy[-1]['correct']:.2f}"
        lines.append(
            f"| {algorithm} | {seed} | {len(rows)} | {reward[0]:.2f} -> {reward[1]:.2f} | {share:.2f} | "
            f"{correct[0]:.2f} -> {correct[1]:.2f} | {held_out} | {seconds:.1f} |"
        )
    means = ", ".join(f"{name} {statistics.mean(values):.2f}" for name, values in shares.items())
    lines.append(f"\nMeans of the first and last {WINDOW} steps. Share of the possible gain, mean: {means}\n")
    return "\n".join(lines)


def movements(moved: dict[tuple[str, int], list[float]], still: dict[tuple[str, int], Path]) -> str:
    lines = [
        f"| algorithm | seed | groups without variance | parameters moved in {STILL_STEPS} steps |",
        "|---|--:|--:|--:|",
    ]
    for key, path in moved.items():
        flat = statistics.mean(row["zero_variance_groups"] for row in read(still[key] / "metrics.jsonl"))
        lines.append(f"| {key[0]} | {key[1]} | {flat:.2f} | {path[-1]:.3g} |")
    return "\n".join(lines) + "\n"


def distances(folder: Path, model: Path) -> list[float]:
    """Euclidean distance of all parameters from the start, after each step."""
    from dcore_jax import load_hf
    from dcore_jax.training import load_policy

    start = flat(load_hf(model))
    return [
        0.0,
        *(
            float(np.linalg.norm(flat(load_policy(folder, step)[0]) - start))
            for step in range(1, STILL_STEPS + 1)
        ),
    ]


def flat(decoder: Any) -> np.ndarray:
    import jax
    from flax import nnx

    leaves = jax.tree.leaves(nnx.split(decoder)[1])
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def draw(runs: dict[tuple[str, int], Path], moved: dict[tuple[str, int], list[float]], out: Path) -> Path:
    from matplotlib.figure import Figure

    colors = dict(zip(dict.fromkeys(key[0] for key in runs), ("#1f3b57", "#c8553d", "#5b7f3a", "#7a4f9a")))
    figure = Figure(figsize=(10, 3.8), dpi=125, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, color in colors.items():
        series = [
            [row["reward"] for row in read(folder / "metrics.jsonl")]
            for key, folder in runs.items()
            if key[0] == name
        ]
        for values in series:
            left.plot(smooth(values), color=color, linewidth=0.6, alpha=0.6)
        mean = np.mean([values[: min(map(len, series))] for values in series], axis=0)
        left.plot(smooth(mean), color=color, linewidth=2, label=f"{name} ({len(series)} seeds)")
        paths = [path for key, path in moved.items() if key[0] == name]
        for number, path in enumerate(paths):
            right.plot(path, color=color, linewidth=1.2, label=None if number else name)
    left.set(xlabel="step", ylabel=f"sampled reward (of {LARGEST:.0f})", title="the default run")
    right.set(xlabel="step", ylabel="distance from the start", title="no reward variance")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
    figure.savefig(out)
    return out


def smooth(values: Any) -> np.ndarray:
    """Mean over a window of steps, shorter at the start."""
    total = np.cumsum(np.insert(np.asarray(values, float), 0, 0.0))
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - WINDOW, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def ends(rows: list[dict[str, Any]], name: str) -> tuple[float, float]:
    values = [row[name] for row in rows]
    return statistics.mean(values[:WINDOW]), statistics.mean(values[-WINDOW:])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
