"""Everything that decides a self-distillation run. The defaults are the paper's (D-CORE, section 3.1 and Algorithm 1)."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dcore_jax.calls import CALL_FORMATS
from dcore_jax.config import MAY_CHANGE
from dcore_jax.engines.engine import SamplingParams
from dcore_jax.errors import UserError
from dcore_jax.sft.config import SFTConfig

Mode = Literal["none", "reference", "examples", "pseudo"]
MODES: tuple[Mode, ...] = ("none", "reference", "examples", "pseudo")  # the rows of the paper's Table 6
MODE_NAMES = {
    "none": "no reference",
    "reference": "reference",
    "examples": "reference + few-shot",
    "pseudo": "pseudo-labels",
}
NANO = "nano"


@dataclass(frozen=True)
class StageSampling:
    max_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = -1

    def params(self, seed: int) -> SamplingParams:
        return SamplingParams(self.max_tokens, self.temperature, self.top_p, self.top_k, seed=seed)


def _reason() -> StageSampling:
    return StageSampling(max_tokens=4096)


def _base() -> SFTConfig:
    return SFTConfig(model=NANO, data=("toolworld",), output="")


@dataclass(frozen=True)
class DistillConfig:
    model: str = ""  # Hugging Face folder or hub id; `nano`: the embedded one
    seeds: tuple[str, ...] = ()  # source:path, as toolace:data/toolace.json; `toolworld:500`
    output: str = field(default="data/self_distilled", metadata=MAY_CHANGE)  # the run's folder
    limit: int | None = field(
        default=None, metadata=MAY_CHANGE
    )  # only so many seed samples, from each source in turn
    preset: Literal["paper", "release"] = (
        "paper"  # paper: what the text says; release: what the authors' code runs
    )
    mode: Mode = "examples"  # what the decomposition is shown: none, reference, examples (and reference), pseudo labels
    examples: int = 3  # worked examples at most; the single-turn family has one
    labels: str = (
        ""  # of mode pseudo: a JSONL file of {"id", "calls"}; empty: the model given as labeller writes them
    )
    labeller: str = ""  # a stronger model's folder or hub id; empty: the model itself
    act: Literal["replay", "execute"] = (
        "replay"  # recorded responses, or an environment where the sample has one
    )
    parallel: Literal["auto", "apart", "in_order"] = "auto"  # auto: apart for paper, in_order for release
    leaks: Literal["auto", "reject", "allow"] = (
        "auto"  # values of the reference in a description; auto: allow for release
    )
    attempts: int = 1  # at a whole sample, each with other seeds
    tries: int = 2  # at one subtask's thought and call
    call_format: str = "python"  # python | tags | qwen: the calls of the asked model and of the corpus
    prompts: str = ""  # a folder whose files come before the package's; `nano`: the tool world's
    benchmarks: tuple[
        str, ...
    ] = ()  # evaluation files (BFCL, API-Bank): seeds that match an item are rejected
    table6: bool = False  # run all four modes on the same seeds, each in its own folder, and print the table
    corpus: Literal["jsonl", "parquet"] = "jsonl"
    strict: bool = False  # stop at the first seed record that cannot be read, naming file and line
    seed: int = 0
    engine: Literal["native", "vllm", "vllm-server"] = "native"
    servers: tuple[str, ...] = field(
        default=(), metadata=MAY_CHANGE
    )  # addresses, where engine is vllm-server
    in_flight: int = field(
        default=64, metadata=MAY_CHANGE
    )  # questions that wait for an engine at the same time
    slots: int = 32  # answers that the native engine writes at the same time; part of what a seed gives
    max_length: int | None = None  # tokens of prompt and answer together; None: what the model was made for
    cache_length: int = 0  # positions the native engine's cache starts with
    dtype: Literal["float32", "bfloat16", "float16"] = (
        "bfloat16"  # of weights and activations of the native engine
    )
    mesh: str | None = field(default=None, metadata=MAY_CHANGE)
    decompose: StageSampling = field(default_factory=StageSampling)
    reason: StageSampling = field(default_factory=_reason)
    # Where model is `nano`: the SFT run that makes it, done once; its output is <output>/base unless it names another.
    base: SFTConfig = field(default_factory=_base)

    def __post_init__(self) -> None:
        if self.call_format not in CALL_FORMATS:
            raise UserError(f"call_format is {self.call_format!r}; choose one of {', '.join(CALL_FORMATS)}")
        smallest: dict[str, Any] = {"attempts": 1, "tries": 1, "in_flight": 1, "slots": 1, "examples": 0}
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
        if self.labeller and self.servers:
            raise UserError(
                "the servers hold one model, and labeller is another; leave --servers out, so that each model gets"
                " a server of its own, or give --labels written before"
            )
        for stage in (self.decompose, self.reason):
            stage.params(0)

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
