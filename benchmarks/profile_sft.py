"""Where the time of one SFT step goes: the operations that XLA's own trace names, longest first.

python benchmarks/profile_sft.py [--rows 8 --length 512 --segments 1 --weighted 1.0] [--block 256]
"""

import argparse
import collections
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcore_jax.models import Compute, attention, model_config_from_hf
from dcore_jax.sft.config import OptimizerConfig
from dcore_jax.sft.step import Batch, TrainState, make_optimizer, make_train_step
from dcore_jax.toolworld.nano import nano_fields
from dcore_jax.weights import new_decoder


def main() -> None:
    args = parse()
    attention.XLA_BLOCK[jax.default_backend()] = args.block
    fields = nano_fields(args.vocab, hidden=args.hidden, layers=4) | {
        "head_dim": 64,
        "num_attention_heads": 4,
    }
    model = new_decoder(model_config_from_hf(fields), compute=Compute(dtype=jnp.float32, remat="none"))
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 1e-5)
    graph, params = nnx.split(model)
    state = TrainState(params, optimizer.init(params), None, jnp.zeros((), jnp.int32), jax.random.PRNGKey(0))
    batch = make_batch(args)
    step = jax.jit(make_train_step(graph, optimizer)).lower(state, batch).compile()
    seconds = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
    print(f"{statistics.median(seconds):.3f} s a step (median of {args.rounds}), best {min(seconds):.3f} s\n")
    for name, milliseconds, times in operations(step, state, batch)[: args.top]:
        print(f"{milliseconds:9.1f} ms  {times:5} x  {name}")


def operations(step, state, batch) -> list[tuple[str, float, int]]:
    """(operation, milliseconds, times) of one traced step, longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(step(state, batch))
        data = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
    total: collections.Counter[str] = collections.Counter()
    times: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                total[event.name] += event.duration_ns
                times[event.name] += 1
    return [(name, ns / 1e6, times[name]) for name, ns in total.most_common()]


def make_batch(args: argparse.Namespace) -> Batch:
    """Random tokens in rows of `segments` equal segments, a share `weighted` of them with loss."""
    shape, rng = (1, args.rows, args.length), np.random.default_rng(0)
    at = np.broadcast_to(np.arange(args.length, dtype=np.int32), shape)
    size = args.length // args.segments
    mask = rng.random(shape) < args.weighted
    tokens = rng.integers(0, args.vocab, shape).astype(np.int32)
    fields = {"tokens": tokens, "segment_ids": at // size + 1, "positions": at % size, "loss_mask": mask}
    return Batch(**fields, denominator_mask=mask)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {
        "rows": 8,
        "length": 512,
        "segments": 1,
        "vocab": 8192,
        "hidden": 256,
        "block": 256,
        "rounds": 7,
    }
    for name, value in {**defaults, "top": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--weighted", type=float, default=1.0, help="share of the tokens with loss")
    return parser.parse_args()


if __name__ == "__main__":
    main()
