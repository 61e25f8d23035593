"""`dcore bench`: the kernels on the device at hand, beside its limit."""

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError

DESCRIPTION = """The output head's kernels and attention, forward and backward, on the device that JAX finds: ms, FLOP/s,
MFU, memory bandwidth, and the share of the limit that the device's peak rates set.

  dcore bench                      on a GPU or TPU: Qwen3-8B's sizes in bfloat16; on a CPU: small ones
  dcore bench --tokens 16384 --repeats 50

Useful arithmetic alone counts: what a kernel computes again lowers its share."""


@dataclass(frozen=True)
class BenchOptions:
    """Sizes; without one, Qwen3-8B's on an accelerator and small ones on a CPU."""

    tokens: int | None = None
    """Tokens of the head's kernels, and of attention's one row."""
    width: int | None = None
    """Width of the hidden states."""
    vocab: int | None = None
    """Entries of the vocabulary."""
    dtype: str | None = None
    """float32 or bfloat16."""
    repeats: int = 10
    """Timed runs of each kernel, taken in turns."""

    def __post_init__(self) -> None:
        for name in ("tokens", "width", "vocab", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"dtype={self.dtype} must be float32 or bfloat16")


def run(arguments: Sequence[str]) -> None:
    """Parses, measures, prints one Markdown table."""
    options = parse_options(
        BenchOptions, arguments, description=DESCRIPTION, default_config=lambda _: None, program="dcore bench"
    )
    import jax

    from dcore_jax.plan import bench

    here = jax.devices()[0]
    size = bench.SMALL if here.platform == "cpu" else bench.ACCELERATOR
    given = {name: getattr(options, name) for name in ("tokens", "width", "vocab", "dtype")}
    size = replace(size, **{name: value for name, value in given.items() if value is not None})
    found = bench.measure_kernels(
        size,
        repeats=options.repeats,
        report=lambda text: print(f"bench: {text}", file=sys.stderr, flush=True),
    )
    device = bench.device_at_hand()
    print(f"{datetime.date.today()}, {here.device_kind}, jax {version('jax')}, median of {options.repeats}")
    print(f"head {size.tokens} x {size.width} x {size.vocab}, {size.dtype}")
    print(f"attention {size.tokens} tokens, {size.heads} heads of {size.head_dim}\n")
    print(bench.bench_table(found, device))
    if device is None:
        what = "a CPU has" if here.platform == "cpu" else f"{here.device_kind} has"
        print(f"\n{what} no stated peak: no MFU, no share of a limit")
    else:
        peaks = f"{device.peak_flops / 1e12:,.0f} TFLOP/s, {device.bandwidth / 1e9:,.0f} GB/s"
        print(f"\npeaks of {device.kind}: {peaks} ({device.source})")
