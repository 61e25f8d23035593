"""Everything that decides an SFT run. The defaults are the paper's for Qwen3-8B (D-CORE, appendix A.6.1)."""

import math
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

from dcore_jax.config import MAY_CHANGE
from dcore_jax.data.chat_template import parse_options
from dcore_jax.errors import UserError
from dcore_jax.lora import LoraConfig
from dcore_jax.metrics import Tracker
from dcore_jax.nano.config import NanoConfig
from dcore_jax.regions.region import RegionValues
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig


@dataclass(frozen=True)
class PackingConfig:
    """How samples share rows; none is ever split."""

    length: int = 16384
    """Tokens in a row; a longer sample is counted and left out."""
    method: Literal["first_fit", "best_fit", "next_fit"] = "first_fit"
    """Bin packing rule; next_fit is the release's."""
    order: Literal["shuffle", "round_robin"] = "shuffle"
    """Order of the samples; round_robin takes the categories in turn, as the release does."""
    bins: int = 128
    """Rows that are open at the same time while packing."""


# ResT's release weighs all from <tool_call> to </tool_call> twice (its loss_scale `hermes`).
_CALLS_TWICE = RegionValues(outside=1.0, format=2.0, name=2.0, parameters=2.0, thinking=1.0)
LossName = Literal["sft", "tsft", "rsft"]


@dataclass(frozen=True)
class LossConfig:
    """How much each learned token counts (docs/sft.md)."""

    name: LossName = "sft"
    """sft: all alike; tsft: by its region, as `weights` say; rsft: by its region's entropy before training, as in ResT Eq. 9."""
    weights: RegionValues = _CALLS_TWICE
    """Weight of a token in each region (tsft); 0 leaves a region out. Calls twice, as in the SFT scripts of ResT's release."""
    entropy_weights: Literal["inverse", "collision"] = "inverse"
    """Weight of a region with mean entropy H in nats (rsft): 1 / H, or 1 / (1 - exp(-H))."""
    weight_min: float = 0.001
    """Lower bound of the regions' weights before they are normalised to mean 1 over a turn (rsft)."""
    weight_max: float = 8.0
    """Upper bound of the regions' weights before they are normalised to mean 1 over a turn (rsft)."""

    def __post_init__(self) -> None:
        for region, value in asdict(self.weights).items():
            if not 0 <= value < math.inf:
                raise UserError(f"loss.weights.{region}={value} must be a number of at least 0")
        if not 0 < self.weight_min <= self.weight_max < math.inf:
            raise UserError(
                f"loss.weight_min={self.weight_min} must be above 0 and at most loss.weight_max={self.weight_max}"
            )
        for field_name in ("weights", "entropy_weights", "weight_min", "weight_max"):
            changed = getattr(self, field_name) != getattr(type(self), field_name)
            if changed and f"loss.{field_name}" in self.unused():
                raise UserError(
                    f"loss.{field_name} changes nothing in {self.name}: {self.unused()[f'loss.{field_name}']}"
                )

    def unused(self) -> dict[str, str]:
        """Dotted names of the fields that change nothing, each with the loss that it is for."""
        fields = {"weights": "tsft", "entropy_weights": "rsft", "weight_min": "rsft", "weight_max": "rsft"}
        return {
            f"loss.{name}": f"it is for --loss {loss}" for name, loss in fields.items() if loss != self.name
        }


@dataclass(frozen=True)
class SFTConfig:
    """Packed supervised fine-tuning."""

    # Options that decide which others there are.
    DECIDING: ClassVar = ("loss.name", "lora.rank", "eval-data", "eval")

    model: str = ""
    """Hugging Face folder or hub id; `nano`: the embedded small Qwen3, random weights."""
    data: tuple[str, ...] = ()
    """Files, folders, hub datasets (`owner/name:split=train,weight=0.5`); `toolworld:2000,kinds=single`: embedded sample data."""
    output: str = field(default="runs/sft", metadata=MAY_CHANGE)
    """Folder of the run; the same line started again goes on from its last checkpoint."""
    mesh: str | None = field(default=None, metadata=MAY_CHANGE)
    """Devices: `8` (fsdp), or `data=2,fsdp=2,tensor=2`; None: all devices."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps, however many epochs they take; None: as many as `epochs` need."""
    epochs: int = field(default=3, metadata=MAY_CHANGE)
    """Passes over the samples, where `steps` is not given."""
    rows: int = 16
    """Packed rows per optimizer step, over all devices (the paper: 2 on each of 8)."""
    accumulation: int = 1
    """Microbatches that the rows of a step are divided into."""
    loss_mask: Literal["last_turn", "release"] = "last_turn"
    """Tokens that carry loss; release: the authors' mask and denominator."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables for the model's chat template, `key=value` each: `enable_thinking=false`."""
    benchmarks: tuple[str, ...] = ()
    """Evaluation files (BFCL, API-Bank); records that match an item of theirs are counted and left out."""
    eval_data: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Held-out data, named as in data: their loss is computed while the run trains."""
    eval: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Evaluated every --eval-every steps: `toolworld:100,kinds=parallel`, `bfcl:live_simple`; the first decides the best step."""
    eval_every: int = field(default=100, metadata=MAY_CHANGE)
    """Steps between two evaluations; there is one after the last step too. The best step's checkpoint is kept."""
    strict: bool = False
    """Stop at the first record that cannot be used, naming file and line, instead of counting it."""
    seed: int = 0
    """Seed of sample order, packing and random weights."""
    trackers: tuple[Tracker, ...] = field(default=(), metadata=MAY_CHANGE)
    """Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio."""
    peak_tflops: float | None = field(default=None, metadata=MAY_CHANGE)
    """Peak TFLOP/s of one device, for MFU; None: looked up by its name."""
    loss: LossConfig = field(default_factory=LossConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    nano: NanoConfig = field(default_factory=NanoConfig)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.accumulation < 1 or self.rows % self.accumulation:
            raise UserError(
                f"rows={self.rows} must be a positive multiple of accumulation={self.accumulation}"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        least_one = {
            "epochs": self.epochs,
            "packing.length": self.packing.length,
            "eval_every": self.eval_every,
        }
        for name, value in least_one.items():
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0")
        if self.loss.name != "sft" and self.loss_mask == "release":
            raise UserError(
                f"loss {self.loss.name} finds its regions in assistant turns alone; set loss_mask last_turn"
            )
        parse_options(self.chat_template_kwargs)
        if self.chat_template_kwargs and self.loss_mask == "release":
            raise UserError(
                "chat_template_kwargs change nothing under loss_mask=release, which builds ChatML by hand; leave them out"
            )

    def unused_options(self) -> dict[str, str]:
        """Dotted fields that change nothing under this config, each with the reason."""
        unused = self.loss.unused() | self.lora.unused_options()
        if not self.eval_data and not self.eval:
            unused = {**unused, "eval_every": "it is for --eval-data and --eval"}
        return unused
