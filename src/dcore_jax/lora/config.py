"""The options of LoRA and QLoRA, one group for every recipe."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from dcore_jax.errors import UserError

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters and nothing else (docs/lora.md)."""

    rank: int = 0
    """Rank of the update of each matrix; 0: no adapters, all parameters are trained."""
    alpha: float = 32.0
    """The update counts alpha / rank times."""
    targets: tuple[Target, ...] = TARGETS
    """Matrices of every layer that get an adapter."""
    quantize: Literal["none", "nf4"] = "none"
    """How the frozen matrices of the layers are stored; nf4: 4 bits in blocks of 64 (QLoRA)."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank={self.rank} must be at least 0")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha={self.alpha} must be above 0")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError(f"lora.targets={list(self.targets)} should name each matrix once, at least one")
        if not self.rank and self.quantize != "none":
            raise UserError(
                f"lora.quantize={self.quantize} freezes the model and there is no adapter to train; give --lora.rank 16"
            )

    def __bool__(self) -> bool:
        return self.rank > 0

    def unused_options(self) -> dict[str, str]:
        """Dotted options of a recipe's config that change nothing, each with the reason."""
        names = () if self else ("alpha", "targets", "quantize")
        return {f"lora.{name}": "it is for --lora.rank above 0" for name in names}

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.alpha / self.rank


def check_lora_installed(lora: LoraConfig) -> None:
    """Raises UserError, saying what to install, where a package that these options need is missing.

    Call it before data and model are read: minutes of work should not end at an import.
    """
    if lora.quantize == "nf4" and find_spec("qwix") is None:
        raise UserError(
            "lora.quantize=nf4 needs the package qwix: pip install 'dcore-jax[lora]', see docs/lora.md"
        )
