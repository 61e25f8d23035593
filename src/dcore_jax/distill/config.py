"""Everything that decides a self-distillation run. The defaults are the paper's (D-CORE, section 3.1 and Algorithm 1)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dcore_jax.calls import CALL_FORMATS
from dcore_jax.config import MAY_CHANGE
from dcore_jax.data.chat_template import parse_options
from dcore_jax.dtypes import DTypeName
from dcore_jax.engines.config import EngineConfig, unused_engine_options
from dcore_jax.engines.engine import SamplingParams
from dcore_jax.errors import UserError
from dcore_jax.nano.config import NANO

Mode = Literal["none", "reference", "examples", "pseudo"]
MODES: tuple[Mode, ...] = ("none", "reference", "examples", "pseudo")  # the rows of the paper's Table 6
MODE_NAMES = {
    "none": "no reference",
    "reference": "reference",
    "examples": "reference + few-shot",
    "pseudo": "pseudo-labels",
}


@dataclass(frozen=True)
class StageSampling:
    """How the answers of a stage are sampled."""

    max_tokens: int = 1024
    """Most tokens of an answer."""
    temperature: float = 0.7
    """Sampling temperature."""
    top_p: float = 0.95
    """Smallest set of tokens with this mass is sampled from; 1: all."""
    top_k: int = -1
    """Most probable tokens that are sampled from; -1: all."""

    def params(self, seed: int) -> SamplingParams:
        """The engine's sampling parameters."""
        return SamplingParams(self.max_tokens, self.temperature, self.top_p, self.top_k, seed=seed)


@dataclass(frozen=True)
class DecomposeSampling(StageSampling):
    """How decompositions are sampled."""


@dataclass(frozen=True)
class ReasonSampling(StageSampling):
    """How the thought and the call of a subtask are sampled."""

    max_tokens: int = 4096
    """Most tokens of an answer."""


def _engine() -> EngineConfig:
    return EngineConfig(slots=32)


@dataclass(frozen=True)
class DistillConfig:
    """Self-distillation (D-CORE, section 3.1 and Algorithm 1)."""

    # Options that decide the defaults of others.
    DECIDING: ClassVar = ("model", "engine.name")

    model: str = ""
    """Hugging Face folder or hub id; `nano`: the embedded small Qwen3, as `base` makes it."""
    seeds: tuple[str, ...] = ()
    """Seed samples: files, folders, hub datasets, also source:path as toolace:data.json; `toolworld:500`: embedded tasks."""
    output: str = field(default="data/self_distilled", metadata=MAY_CHANGE)
    """Folder of the run; the same line started again goes on where it was stopped."""
    limit: int | None = field(default=None, metadata=MAY_CHANGE)
    """Number of seed samples, taken from each source in turn; None: all."""
    preset: Literal["paper", "release"] = "paper"
    """paper: what the text says; release: what the authors' code runs."""
    mode: Mode = "examples"
    """What a decomposition is shown: nothing, reference calls, also examples, or pseudo-labels."""
    examples: int = 3
    """Worked examples at most; the single-turn family has one."""
    labels: str = ""
    """JSONL file of {"id", "calls"} for mode pseudo; empty: the labeller writes them."""
    labeller: str = ""
    """Stronger model that writes pseudo-labels, folder or hub id; empty: the model itself."""
    act: Literal["replay", "execute"] = "replay"
    """Tool responses: recorded ones, or those of an environment where the sample has one."""
    parallel: Literal["auto", "apart", "in_order"] = "auto"
    """Parallel subtasks: each alone, or one after the other; auto: apart for paper, in_order for release."""
    leaks: Literal["auto", "reject", "allow"] = "auto"
    """Values in a description that only the reference holds; auto: rejected for paper, allowed for release."""
    attempts: int = 1
    """Attempts per sample, each with new seeds."""
    tries: int = 2
    """Attempts per subtask's thought and call."""
    call_format: str = "python"
    """Notation of calls in answers and corpus: python, tags, qwen or json."""
    prompts: str = ""
    """Folder of prompt templates that come before the package's; `nano`: the tool world's."""
    benchmarks: tuple[str, ...] = ()
    """Evaluation files (BFCL, API-Bank); seeds that match an item of theirs are rejected."""
    table6: bool = False
    """Run all four modes on the same seeds, each in its own folder, and print the paper's Table 6."""
    corpus: Literal["jsonl", "parquet"] = "jsonl"
    """File format of the corpus."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables for the chat template of model and labeller, `key=value` each: `enable_thinking=false`."""
    strict: bool = False
    """Stop at the first seed record that cannot be read, naming file and line, instead of counting it."""
    seed: int = 0
    """Seed of sampling and of the corpus's order."""
    in_flight: int = field(default=64, metadata=MAY_CHANGE)
    """Requests that wait for an engine at the same time."""
    max_length: int | None = None
    """Tokens of prompt and answer together; None: what the model was made for."""
    dtype: DTypeName = "bfloat16"
    """Type of weights and activations of the engine."""
    mesh: str | None = field(default=None, metadata=MAY_CHANGE)
    """Devices of the native engine: `8` (fsdp), or `data=2,tensor=4`; None: one."""
    base: str = "base_nano"
    """SFT config, a name or a file, that makes the model where --model is `nano`; trained once."""
    engine: EngineConfig = field(default_factory=_engine)
    decompose: DecomposeSampling = field(default_factory=DecomposeSampling)
    reason: ReasonSampling = field(default_factory=ReasonSampling)

    def __post_init__(self) -> None:
        if self.call_format not in CALL_FORMATS:
            raise UserError(f"call_format is {self.call_format!r}; choose one of {', '.join(CALL_FORMATS)}")
        smallest = {"attempts": 1, "tries": 1, "in_flight": 1, "examples": 0}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit} must be at least 1; leave it out to take every seed sample")
        if self.preset == "release" and self.attempts > 1:
            raise UserError(
                f"attempts={self.attempts}: the release never asks again; use --preset paper, or --attempts 1"
            )
        pseudo = self.mode == "pseudo" or self.table6
        for name in ("labels", "labeller"):
            if getattr(self, name) and not pseudo:
                raise UserError(
                    f"{name} is given but mode is {self.mode!r}; use --mode pseudo, or leave it out"
                )
        if self.labels and self.labeller:
            raise UserError(
                "labels and labeller are both given; keep --labels, or --labeller to have labels written"
            )
        if self.labeller and self.engine.servers:
            raise UserError(
                "the servers hold one model, and labeller is another; leave --engine.servers out, so that each model gets"
                " a server of its own, or give --labels written before"
            )
        for stage in (self.decompose, self.reason):
            stage.params(0)
        parse_options(self.chat_template_kwargs)

    @property
    def parallel_apart(self) -> bool:
        return self.preset == "paper" if self.parallel == "auto" else self.parallel == "apart"

    @property
    def reject_leaks(self) -> bool:
        return self.preset == "paper" if self.leaks == "auto" else self.leaks == "reject"

    @property
    def plain_decompose(self) -> bool:
        """Whether the decomposition is asked for without the chat template, as the release does."""
        return self.preset == "release" and self.prompts != NANO

    def unused_options(self) -> dict[str, str]:
        """Dotted fields that change nothing under this config, each with the reason."""
        unused = {} if self.model in ("", NANO) else {"base": "it makes the model of --model nano"}
        return unused | unused_engine_options(self.engine)

    def choices(self) -> str:
        """What differs between the presets, as this run has it."""
        return ", ".join(
            [
                f"preset {self.preset}",
                f"mode {MODE_NAMES[self.mode]}",
                f"decomposition {'without' if self.plain_decompose else 'through'} the chat template",
                f"act by {self.act}",
                f"parallel subtasks {'apart' if self.parallel_apart else 'in order'}",
                "verify " + ("every kind" if self.preset == "paper" else "sequential only"),
                "irrelevant " + ("explained by the model" if self.preset == "paper" else "by a fixed text"),
                f"leaks {'rejected' if self.reject_leaks else 'allowed'}",
                f"attempts {self.attempts}",
            ]
        )
