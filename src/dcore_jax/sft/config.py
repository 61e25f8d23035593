"""Everything that decides an SFT run. The defaults are the paper's for Qwen3-8B (D-CORE, appendix A.6.1)."""

import math
from dataclasses import dataclass, field
from typing import Literal

from dcore_jax.config import MAY_CHANGE
from dcore_jax.errors import UserError
from dcore_jax.metrics import Tracker


@dataclass(frozen=True)
class PackingConfig:
    length: int = 16384  # tokens in a row; a longer sample is counted and left out
    method: Literal["first_fit", "best_fit", "next_fit"] = "first_fit"  # next_fit is the release's
    order: Literal["shuffle", "round_robin"] = "shuffle"  # round_robin: category by category, as the release
    bins: int = 128  # rows kept open at a time while packing


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-5  # at its peak
    schedule: Literal["cosine", "linear", "constant"] = (
        "cosine"  # after the warm-up, down to 0 (constant: not)
    )
    warmup: float = 0.05  # share of the steps in which the learning rate rises from 0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # of matrices; norms and biases are never decayed
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping
    ema_decay: float = 0.0  # of an exponential moving average of the parameters; 0: none is kept

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "clip_norm", "epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must be a number of at least 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"optimizer.warmup={self.warmup} is a share of the steps, in [0, 1]")


@dataclass(frozen=True)
class ComputeConfig:
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"  # of activations and matmuls
    param_dtype: Literal["float32", "bfloat16"] = "float32"  # of parameters, gradients and optimizer moments
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    remat: Literal["none", "dots", "attention", "full"] = "full"  # what the backward pass computes again


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = field(default=200, metadata=MAY_CHANGE)  # steps; the last step is always saved
    keep: int = field(default=2, metadata=MAY_CHANGE)  # newest ones


@dataclass(frozen=True)
class NanoConfig:
    """The embedded default, used when model is `nano` or data is `toolworld`."""

    hidden: int = 128
    layers: int = 2
    tasks: int = 2000  # tool-world tasks to draw the sample data from
    subtasks: int = 3  # at most, in one task
    kinds: tuple[str, ...] = ()  # of these tasks: single, sequential, parallel, irrelevant; empty: all
    lazy: float = 0.0  # share of these tasks that are refused, whether or not a tool serves them
    # Besides, tasks of 2 to 5 subtasks that are not shown whole: each is taught as a decomposition, every other one subtask by
    # subtask too; and a quarter as many single tasks as decompositions.
    lessons: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.lazy <= 1:
            raise UserError(f"nano.lazy={self.lazy} is a share, between 0 and 1")


@dataclass(frozen=True)
class SFTConfig:
    model: str = ""  # Hugging Face folder or hub id; `nano`: a small random Qwen3 built on the spot
    data: tuple[str, ...] = ()  # JSONL, JSON or Parquet files; `toolworld`: sample data of the tool world
    output: str = field(default="runs/sft", metadata=MAY_CHANGE)  # the run's folder
    mesh: str | None = field(
        default=None, metadata=MAY_CHANGE
    )  # `8`, or `data=2,fsdp=2,tensor=2`; None: all devices
    steps: int | None = None  # optimizer steps; None: as many as `epochs` need
    epochs: int = 3  # passes over the samples; with `steps`, at most these
    rows: int = 16  # packed rows in one optimizer step, on all devices together (the paper: 2 on each of 8)
    accumulation: int = 1  # microbatches the rows are divided into
    loss_mask: Literal["last_turn", "release"] = "last_turn"  # release: the authors' mask and denominator
    strict: bool = False  # stop at the first record that cannot be used, naming file and line
    seed: int = 0
    packing: PackingConfig = field(default_factory=PackingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    nano: NanoConfig = field(default_factory=NanoConfig)
    trackers: tuple[Tracker, ...] = field(default=(), metadata=MAY_CHANGE)  # besides metrics.jsonl
    peak_tflops: float | None = field(
        default=None, metadata=MAY_CHANGE
    )  # of one device, for MFU; None: by its name

    def __post_init__(self) -> None:
        if self.rows < 1 or self.accumulation < 1 or self.rows % self.accumulation:
            raise UserError(
                f"rows={self.rows} must be a positive multiple of accumulation={self.accumulation}"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        if self.checkpoint.every < 1 or self.checkpoint.keep < 1:
            raise UserError("checkpoint.every and checkpoint.keep must be at least 1")
        for name, value in {"epochs": self.epochs, "packing.length": self.packing.length}.items():
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0")
