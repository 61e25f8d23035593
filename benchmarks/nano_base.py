"""What a nano base leads to: base -> held-out tasks -> self-distillation -> SFT on its own corpus -> held-out tasks.

    python benchmarks/nano_base.py --output runs/trial [--layers 4 --steps 6000 --learning-rate 3e-3 --copying 24000 ...]

One trial of how the base in the repository was found: everything that decides a base is an option. Each stage is a run folder in
--output and is gone on with, or passed over, when the line is started again. The last line is one JSON object: seconds of each
stage, shares of whole held-out tasks by kind and number of calls, decompositions accepted by kind.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from dcore_jax.mesh import prepare_devices
from heading import heading


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--tasks", type=int, default=24000)
    parser.add_argument("--lessons", type=int, default=24000)
    parser.add_argument("--copying", type=int, default=24000)
    parser.add_argument("--kinds", default="single+irrelevant+missing")
    parser.add_argument("--lesson-kinds", default="sequential+parallel+mixed")
    parser.add_argument("--epochs", type=int, default=40, help="of the base's data, at most")
    parser.add_argument("--seeds", type=int, default=3000, help="tasks that the base decomposes")
    parser.add_argument("--seed-kinds", default="single+sequential+parallel+irrelevant+missing+mixed")
    parser.add_argument("--taught-steps", type=int, default=600)
    parser.add_argument("--taught-rate", type=float, default=2e-3)
    parser.add_argument("--held-out", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prepare_devices("1")
    print(heading(["jax", "flax"]), flush=True)
    import jax

    from dcore_jax import distill, export_hf, sft
    from dcore_jax.config import find_config, read_config
    from dcore_jax.distill.config import DistillConfig
    from dcore_jax.evaluation import attempt_tasks
    from dcore_jax.metrics import read_metrics
    from dcore_jax.nano import NanoConfig
    from dcore_jax.toolworld import KINDS, generate_tasks
    from dcore_jax.training import load_policy

    seconds: dict[str, float] = {}
    result: dict = {
        "options": {k: str(v) for k, v in vars(args).items()},
        "device": jax.devices()[0].device_kind,
    }

    def timed(name, function, *arguments, **options):
        start = time.perf_counter()
        found = function(*arguments, **options)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(json.dumps({"stage": name, "seconds": seconds[name]}), flush=True)
        return found

    def export(run: Path, out: Path) -> Path:
        if not out.exists():
            model, source = load_policy(run)
            export_hf(model, out, source=source)
        return out

    held_out = generate_tasks(args.held_out, seed=0, split="test", kinds=KINDS, subtasks=(1, 5))

    def whole(model: Path) -> dict[str, str]:
        asked: Counter[str] = Counter()
        solved: Counter[str] = Counter()
        for attempt in attempt_tasks(model, held_out):
            calls = len(attempt.task.reference)
            group = f"{attempt.task.kind} {calls}" if calls > 1 else attempt.task.kind
            for name in (group, "all", *(["2 and more calls"] if calls > 1 else [])):
                asked[name] += 1
                solved[name] += attempt.solved
        return {name: f"{solved[name]}/{asked[name]}" for name in sorted(asked)}

    spec = f"toolworld:{args.tasks},subtasks=1-3,kinds={args.kinds},lessons={args.lessons},lesson_kinds={args.lesson_kinds}"
    base_config = read_config(sft.SFTConfig, find_config("base_nano"))
    base_config = replace(
        base_config,
        data=(f"{spec},copying={args.copying}",),
        output=str(args.output / "base"),
        mesh="1",
        steps=args.steps,
        epochs=args.epochs,
        rows=args.rows,
        seed=args.seed,
        nano=NanoConfig(hidden=args.hidden, layers=args.layers),
        optimizer=replace(base_config.optimizer, learning_rate=args.learning_rate),
        checkpoint=replace(base_config.checkpoint, every=10**6),
    )
    timed("base", sft.train, base_config)
    base = export(args.output / "base", args.output / "base_hf")
    losses = [row["loss"] for row in read_metrics(args.output / "base" / "metrics.jsonl")]
    result["base_loss"] = [round(sum(losses[:50]) / 50, 4), round(sum(losses[-50:]) / 50, 4)]
    result["base"] = timed("base_tasks", whole, base)
    print(json.dumps(result["base"]), flush=True)

    distillation = read_config(DistillConfig, find_config("distill_nano"))
    distillation = replace(
        distillation,
        model=str(base),
        seeds=(f"toolworld:{args.seeds},subtasks=1-5,reports=yes,kinds={args.seed_kinds}",),
        output=str(args.output / "distilled"),
        seed=args.seed,
    )
    distilled = timed("distillation", distill.distill_seeds, distillation)
    print(distill.summary(distilled), flush=True)

    taught = read_config(sft.SFTConfig, find_config("sft_distilled_nano"))
    taught = replace(
        taught,
        model=str(base),
        data=(str(args.output / "distilled" / "corpus.jsonl"),),
        output=str(args.output / "taught"),
        mesh="1",
        steps=args.taught_steps,
        seed=args.seed,
        optimizer=replace(taught.optimizer, learning_rate=args.taught_rate),
        checkpoint=replace(taught.checkpoint, every=10**6),
    )
    timed("taught", sft.train, taught)
    model = export(args.output / "taught", args.output / "taught_hf")
    result["taught"] = timed("taught_tasks", whole, model)
    print(json.dumps({**result, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
