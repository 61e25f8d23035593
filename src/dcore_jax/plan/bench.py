"""Kernels measured on the device at hand, beside its limit: what share of the peak rates that a plan counts with they reach.

Shape letters: T tokens, D width, V vocabulary; S row length, H query heads, C channels of a head.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dcore_jax.aot import DEVICES, Device
from dcore_jax.kernels import cross_entropy, logprobs_and_entropy
from dcore_jax.models.attention import attend
from dcore_jax.plan.roofline import Phase, Rates
from dcore_jax.plan.work import Work
from dcore_jax.target import target_platform

GROUP = 4  # query heads to a key's


@dataclass(frozen=True)
class BenchSize:
    """What the kernels are run at."""

    tokens: int  # T, and S: attention gets one row of them
    width: int
    vocab: int
    heads: int  # H, a multiple of GROUP
    head_dim: int
    dtype: str


# Qwen3-8B's, and one that a CPU runs in seconds.
ACCELERATOR = BenchSize(8192, 4096, 151_936, 32, 128, "bfloat16")
SMALL = BenchSize(512, 128, 4096, 4, 64, "float32")


@dataclass(frozen=True)
class Measured:
    """A forward and a backward pass of one kernel."""

    name: str
    implementation: str
    seconds: float  # median
    temporaries: int  # bytes, by the compiler
    work: Work  # useful FLOPs twice: nothing that is computed again counts; the least traffic of memory
    refused: str = ""  # why it did not run

    def shares(self, rates: Rates) -> tuple[float, float, float]:
        """(MFU, share of memory's bandwidth, share of the limit) at a device's peak rates."""
        limit = Phase(self.name, 1, self.work, 0.0, 1).seconds(rates)
        return (
            self.work.useful / self.seconds / rates.flops,
            self.work.traffic / self.seconds / rates.bandwidth,
            limit / self.seconds,
        )


def device_at_hand() -> Device | None:
    """The accelerator that JAX runs on, with its stated peaks; None for a CPU or a device that is in no table."""
    kind = jax.devices()[0].device_kind
    return next((device for device in DEVICES.values() if device.kind == kind), None)


def measure_kernels(
    size: BenchSize, *, repeats: int, report: Callable[[str], None] = lambda _: None
) -> list[Measured]:
    """The head's two kernels in every implementation that runs here, and attention; forward and backward passes.

    Args:
      repeats: timed runs of each, taken in turns after one that warms up.
    """
    keys = jax.random.split(jax.random.key(0), 6)
    on_cpu = target_platform() == "cpu"
    # Interpreted Pallas is for tests.
    heads = ("reference", "blocked") if on_cpu else ("reference", "blocked", "pallas")
    cases: list[tuple[str, str, Callable[..., Array], tuple[Array, ...], Work]] = []
    arrays = _head_arrays(size, keys)
    for implementation in heads:
        for name, make in (("cross_entropy", _cross_entropy), ("logprobs_and_entropy", _logprobs)):
            cases.append((name, implementation, make(implementation), arrays, head_work(size)))
    cases.append(("attention", "auto", _attention, _attention_arrays(size, keys), attention_work(size)))
    programs: list[tuple[Measured, Any, tuple[Array, ...]]] = []
    found: list[Measured] = []
    for name, implementation, function, given, work in cases:
        report(f"compiling {name}, {implementation}")
        try:
            compiled = jax.jit(jax.grad(function, argnums=_floats(given))).lower(*given).compile()
            jax.block_until_ready(compiled(*given))
        except jax.errors.JaxRuntimeError as error:  # too large for this device, most likely
            refused = " ".join(str(error).split())[:120]
            found.append(Measured(name, implementation, float("nan"), 0, work, refused))
            continue
        memory = compiled.memory_analysis()
        temporaries = memory.temp_size_in_bytes if memory is not None else 0
        programs.append((Measured(name, implementation, 0.0, temporaries, work), compiled, given))
    seconds = _in_turns([(compiled, given) for _, compiled, given in programs], repeats)
    timed = [
        Measured(m.name, m.implementation, taken, m.temporaries, m.work)
        for (m, *_), taken in zip(programs, seconds)
    ]
    return timed + found


def bench_table(found: Sequence[Measured], device: Device | None) -> str:
    """As Markdown; shares only of a device whose peaks are stated."""
    head, line = (
        "| kernel | implementation | ms | TFLOP/s | GB/s | temporary MiB |",
        "|---|---|--:|--:|--:|--:|",
    )
    rates = Rates(device.peak_flops, device.bandwidth, device.interconnect) if device else None
    if rates:
        head, line = head + " MFU | of the bandwidth | of the limit |", line + "--:|--:|--:|"
    rows = [head, line]
    for one in found:
        if one.refused:
            rows.append(f"| {one.name} | {one.implementation} | refused: {one.refused} |")
            continue
        flops, traffic = one.work.useful / one.seconds, one.work.traffic / one.seconds
        row = (
            f"| {one.name} | {one.implementation} | {one.seconds * 1e3:,.2f} | {flops / 1e12:,.3g} | {traffic / 1e9:,.3g} "
            f"| {one.temporaries / 2**20:,.0f} |"
        )
        rows.append(row + "".join(f" {share:.0%} |" for share in (one.shares(rates) if rates else ())))
    return "\n".join(rows)


def head_work(size: BenchSize) -> Work:
    """Three products [T, D] x [D, V]; operands and gradients pass memory once."""
    flops = 6.0 * size.tokens * size.width * size.vocab
    item = jnp.dtype(size.dtype).itemsize
    return Work(flops, flops, 2.0 * item * size.width * (size.tokens + size.vocab))


def attention_work(size: BenchSize) -> Work:
    """Twelve FLOPs per channel and attended key, half of all keys (causal); queries, keys, values, output and their gradients."""
    flops = 12.0 * size.heads * size.head_dim * size.tokens * (size.tokens + 1) / 2
    item, heads = jnp.dtype(size.dtype).itemsize, 2 * size.heads + 2 * (size.heads // GROUP)
    return Work(flops, flops, 2.0 * item * size.tokens * size.head_dim * heads)


def _head_arrays(size: BenchSize, keys: Array) -> tuple[Array, ...]:
    return (
        jax.random.normal(keys[0], (size.tokens, size.width), size.dtype),
        jax.random.normal(keys[1], (size.width, size.vocab), size.dtype) * 0.05,
        jax.random.randint(keys[2], (size.tokens,), 0, size.vocab),
    )


def _attention_arrays(size: BenchSize, keys: Array) -> tuple[Array, ...]:
    counts = (size.heads, size.heads // GROUP, size.heads // GROUP)
    shapes = [(1, size.tokens, count, size.head_dim) for count in counts]
    qkv = [jax.random.normal(key, shape, size.dtype) for key, shape in zip(keys[3:], shapes)]
    return *qkv, jnp.zeros((1, size.tokens), jnp.int32)


def _cross_entropy(implementation: str) -> Callable[..., Array]:
    def loss(hidden: Array, unembed: Array, targets: Array) -> Array:
        weights = jnp.ones(targets.shape, jnp.float32)
        return cross_entropy(hidden, unembed, targets, weights, implementation=implementation)

    return loss


def _logprobs(implementation: str) -> Callable[..., Array]:
    def loss(hidden: Array, unembed: Array, targets: Array) -> Array:
        return logprobs_and_entropy(hidden, unembed, targets, implementation=implementation)[0].sum()

    return loss


def _attention(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    return attend(q, k, v, segment_ids, implementation="auto").astype(jnp.float32).sum()


def _floats(arrays: Sequence[Array]) -> tuple[int, ...]:
    return tuple(i for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating))


def _in_turns(programs: Sequence[tuple[Any, tuple[Array, ...]]], repeats: int) -> list[float]:
    """Median seconds of each program; the programs take turns, so that a machine's moods fall on all of them."""
    taken: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats):
        for one, (compiled, given) in zip(taken, programs):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*given))
            one.append(time.perf_counter() - start)
    return [statistics.median(one) for one in taken]
