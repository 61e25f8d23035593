"""Time and memory of the kernels against the dense path, as Markdown: `python benchmarks/kernels.py`.

Each row is a forward and a backward pass. Time is the median of interleaved repetitions; memory is the compiler's figure for
temporary buffers. On a shared CPU processor seconds are more reliable than wall-clock seconds, so both are printed. The same
command runs on a GPU, where `--dtype bfloat16 --width 4096 --time-tokens 4096 --implementations reference,blocked,pallas` is
the case of interest.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dcore_jax.kernels import cross_entropy, logprobs_and_entropy
from heading import heading


class Case(NamedTuple):
    """One row: a jitted function and the share of tokens that carry weight."""

    function: str
    implementation: str
    share: float


def main() -> None:
    """Parse the command line, measure every case, print the two tables."""
    options = parse()
    device = jax.devices()[0]
    accelerator = None if device.platform == "cpu" else f"{device.device_kind} x {jax.device_count()}"
    print(heading(["jax", "jaxlib"], accelerator))
    cases = [
        Case(function, implementation, share)
        for function, shares in (("logprobs_and_entropy", [1.0]), ("cross_entropy", [1.0, options.share]))
        for share in shares
        for implementation in options.implementations.split(",")
    ]
    print_memory(cases, options)
    print_time(cases, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--implementations", default="reference,blocked", help="the first is what ratios refer to"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the memory table")
    parser.add_argument("--time-tokens", type=int, default=1024, help="tokens of the time table")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--share", type=float, default=0.3, help="share of tokens with weight, as in real SFT rows"
    )
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def program(case: Case, tokens: int, options: argparse.Namespace):
    """The case's forward and backward pass, compiled for [tokens, width] x [width, vocab]."""

    def loss(hidden, unembed, targets, weights):
        if case.function == "cross_entropy":
            return cross_entropy(hidden, unembed, targets, weights, implementation=case.implementation), 0.0
        logprobs, entropy = logprobs_and_entropy(hidden, unembed, targets, implementation=case.implementation)
        return jnp.sum(weights * logprobs), entropy

    dtype = jnp.dtype(options.dtype)
    shapes = (
        jax.ShapeDtypeStruct((tokens, options.width), dtype),
        jax.ShapeDtypeStruct((options.width, options.vocab), dtype),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*shapes).compile()


def print_memory(cases: list[Case], options: argparse.Namespace) -> None:
    """Temporary memory according to the compiler; nothing is run."""
    print(f"Memory, {options.tokens} x {options.width} x {options.vocab} {options.dtype}:\n")
    print("| function | implementation | temporary MB | of dense |\n|---|---|---:|---:|")
    dense = {}
    for case in (c for c in cases if c.share == 1):
        size = program(case, options.tokens, options).memory_analysis().temp_size_in_bytes / 1e6
        dense.setdefault(case.function, size)
        print(
            f"| {case.function} | {case.implementation} | {size:,.0f} | {size / dense[case.function]:.3f} |"
        )
    print()


def print_time(cases: list[Case], options: argparse.Namespace) -> None:
    """Median seconds; useful GFLOP/s counts three products with the vocabulary for every token, weighted or not."""
    tokens, width, vocab = options.time_tokens, options.width, options.vocab
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (tokens, width), options.dtype)
    unembed = jax.random.normal(keys[1], (width, vocab), options.dtype) * 0.05
    targets = jax.random.randint(keys[2], (tokens,), 0, vocab)
    order = jax.random.uniform(keys[3], (tokens,))
    programs = {case: program(case, tokens, options) for case in cases}
    wall: dict[Case, list[float]] = {case: [] for case in cases}
    cpu: dict[Case, list[float]] = {case: [] for case in cases}
    for repeat in range(options.repeats + 1):
        for case in cases:
            weights = (order < case.share).astype(jnp.float32)
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(programs[case](hidden, unembed, targets, weights))
            if repeat:  # the first round warms up
                wall[case].append(time.perf_counter() - start)
                cpu[case].append(time.process_time() - start_cpu)
    print(f"Time, {tokens} x {width} x {vocab} {options.dtype}, medians of {options.repeats}:\n")
    print(
        "| function | weighted tokens | implementation | s | processor s | of dense (s) | of dense (processor) | GFLOP/s |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    dense: dict[tuple[str, float], tuple[float, float]] = {}
    for case in cases:
        seconds, processor = statistics.median(wall[case]), statistics.median(cpu[case])
        base = dense.setdefault((case.function, case.share), (seconds, processor))
        rate = 6 * tokens * width * vocab / seconds / 1e9
        print(
            f"| {case.function} | {case.share:.0%} | {case.implementation} | {seconds:.3f} | {processor:.3f} "
            f"| {seconds / base[0]:.2f} | {processor / base[1]:.2f} | {rate:,.1f} |"
        )


if __name__ == "__main__":
    main()
