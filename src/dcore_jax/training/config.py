"""The option groups that training recipes share. The string under each field is its text in `--help`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from dcore_jax.config import MAY_CHANGE
from dcore_jax.dtypes import DTypeName, dtype_of
from dcore_jax.errors import UserError
from dcore_jax.models import Compute

Remat = Literal["none", "dots", "attention", "full"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate."""

    learning_rate: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What follows the warm-up: a decay to 0 at the last step, or none."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises linearly from 0."""
    beta1: float = 0.9
    """Decay of the gradient's moving average."""
    beta2: float = 0.999
    """Decay of the squared gradient's moving average."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 clips nothing."""
    ema_decay: float = 0.0
    """Decay of a moving average of the parameters (SFT); 0 keeps none."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Type of the first moment between steps; the second stays float32, whose small changes bfloat16 would round away."""
    offload: bool = False
    """Keep the optimizer's state in host memory between steps: less device memory, two transfers a step."""

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
    """Precision, attention and rematerialisation."""

    dtype: DTypeName = "bfloat16"
    """Type of activations and matrix products."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters; the optimizer keeps float32 masters of bfloat16 ones, and its moments are float32."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention backend; auto: cudnn on NVIDIA, splash on TPU, else xla."""
    remat: Remat = "full"
    """What the backward pass computes again instead of keeping it in memory."""

    def __post_init__(self) -> None:
        if self.dtype == "float16":
            raise UserError(
                "compute.dtype=float16 would round small gradients to 0, and there is no loss scaling; use bfloat16"
            )

    def compute(self) -> Compute:
        """The model's side of these options."""
        return Compute(
            dtype=dtype_of(self.dtype),
            param_dtype=dtype_of(self.param_dtype),
            attention=self.attention,
            remat=self.remat,
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every: int = field(default=200, metadata=MAY_CHANGE)
    """Steps between two checkpoints; the last step is always saved."""
    keep: int = field(default=2, metadata=MAY_CHANGE)
    """How many of the newest checkpoints are kept."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise UserError("checkpoint.every and checkpoint.keep must be at least 1")
