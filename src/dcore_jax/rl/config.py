"""Everything that decides an RL run. The defaults are the paper's for Qwen3-8B (D-CORE, appendix A.6.2)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
import yaml

from dcore_jax.algorithms import AlgorithmConfig, AlgorithmName, PresetName, algorithm_preset
from dcore_jax.calls import CALL_FORMATS
from dcore_jax.config import MAY_CHANGE, NANO, config_from_dict
from dcore_jax.engines import EngineName
from dcore_jax.errors import UserError
from dcore_jax.metrics import Tracker
from dcore_jax.rewards import PRESETS as REWARD_PRESETS
from dcore_jax.sft.config import ComputeConfig, OptimizerConfig, SFTConfig

TOOLWORLD = "toolworld"


@dataclass(frozen=True)
class RolloutConfig:
    group: int = 8  # responses to one prompt, G
    max_prompt: int = 8192  # tokens; a longer prompt is counted and left out
    max_response: int = 4096  # tokens; a longer response is cut off
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    # native: in JAX, in this process; vllm: vLLM in this process; vllm-server: vLLM over HTTP
    engine: Annotated[EngineName, tyro.conf.arg(aliases=["--engine"])] = "native"
    # for vllm-server: http://host:port, once for each; none: one is started here and ends with the run
    servers: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["--server"])] = (
        field(default=(), metadata=MAY_CHANGE)
    )
    # more arguments of a server that is started here, as --tensor-parallel-size=4
    server_arguments: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    slots: int = 64  # responses decoded at the same time, by each server
    cache_length: int = 0  # positions the cache starts with; prompt + response: one decode program, no growth
    # 1: rollouts of step n + 1 overlap the update of step n, sampled by weights one step old.
    staleness: Literal[0, 1] = 0


@dataclass(frozen=True)
class RewardConfig:
    preset: str = "auto"  # of dcore_jax.rewards.PRESETS; auto: dcore_paper or dcore_release, as `preset` says
    call_format: str = "python"  # python | tags | qwen
    beta_accuracy: float = 1.0  # weights of rest_paper's two parts
    beta_format: float = 1.0


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy answers to a fixed set of prompts, before the first step and after the last."""

    prompts: int = 0  # how many; 0: no evaluation
    data: tuple[str, ...] = ()  # files; empty: held-out tasks of the tool world
    every: int = 0  # and after every so many steps; 0: only before and after


@dataclass(frozen=True)
class ToolWorldConfig:
    """Prompts drawn where data is `toolworld`."""

    tasks: int = 512
    kinds: tuple[str, ...] = ()  # single, sequential, parallel, irrelevant; empty: all
    fewest_subtasks: int = 1
    most_subtasks: int = 2


def _base() -> SFTConfig:
    return SFTConfig(model=NANO, data=(TOOLWORLD,), output="")


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup=0.0, weight_decay=0.01)


@dataclass(frozen=True)
class SaveConfig:
    every: int = field(default=20, metadata=MAY_CHANGE)  # steps; the last step is always saved
    keep: int = field(default=2, metadata=MAY_CHANGE)  # newest ones


@dataclass(frozen=True)
class RLConfig:
    model: str = ""  # Hugging Face folder or hub id; `nano`: a small Qwen3, warm-started on the tool world
    data: tuple[
        str, ...
    ] = ()  # prompts: JSONL, JSON or Parquet files; `toolworld`: drawn from the tool world
    output: str = field(default="runs/rl", metadata=MAY_CHANGE)  # the run's folder
    algorithm: AlgorithmName = "da_grpo"
    preset: PresetName = "paper"  # paper: what the text says; release: what the authors' code runs
    algorithm_fields: tuple[str, ...] = ()  # changes of single numbers, as alpha=0.4 or dynamic_sampling=true
    mesh: str | None = field(default=None, metadata=MAY_CHANGE)  # `8`, or `data=2,fsdp=4`; None: all devices
    steps: int | None = None  # rounds of rollouts and updates; None: as many as `epochs` need
    epochs: int = 3  # passes over the prompts
    prompts: int = 32  # in a step, on all devices together
    updates: int = 4  # optimizer steps in a step, each on prompts / updates of the prompts
    micro_rows: int | None = None  # responses in one forward pass; None: all of an update
    reference_on_host: bool = False  # keep the KL's reference model in host memory between its uses
    # Turns that report what the tools have answered are prompts too; their reward is for calling nothing more.
    reports: bool = False
    strict: bool = False  # stop at the first prompt that cannot be used, naming file and line
    seed: int = 0
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: SaveConfig = field(default_factory=SaveConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    toolworld: ToolWorldConfig = field(default_factory=ToolWorldConfig)
    # Where model is `nano`: the SFT run that makes it, done once; its output is <output>/base unless it names another.
    base: SFTConfig = field(default_factory=_base)
    trackers: tuple[Tracker, ...] = field(default=(), metadata=MAY_CHANGE)  # besides metrics.jsonl

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.updates < 1 or self.prompts % self.updates:
            raise UserError(
                f"prompts={self.prompts} must be a positive multiple of updates={self.updates}, each of which takes whole groups"
            )
        positive = {
            "epochs": self.epochs,
            "micro_rows": self.micro_rows,
            "rollout.group": self.rollout.group,
            "rollout.max_prompt": self.rollout.max_prompt,
            "rollout.max_response": self.rollout.max_response,
            "rollout.slots": self.rollout.slots,
            "toolworld.tasks": self.toolworld.tasks,
        }
        natural = {
            "seed": self.seed,
            "rollout.cache_length": self.rollout.cache_length,
            "evaluation.prompts": self.evaluation.prompts,
            "evaluation.every": self.evaluation.every,
        }
        for values, least in ((positive, 1), (natural, 0)):
            for name, value in values.items():
                if value is not None and value < least:
                    raise UserError(f"{name}={value} must be at least {least}")
        if self.rollout.servers and self.rollout.engine != "vllm-server":
            raise UserError(f"--server is for --engine vllm-server, not for {self.rollout.engine}")
        if self.rollout.engine != "native" and (self.rollout.top_p < 1 or self.rollout.top_k > 0):
            raise UserError(
                f"engine {self.rollout.engine} gives log-probabilities of what top-p and top-k left over, which RL cannot use; "
                "set rollout.top_p 1 and rollout.top_k -1"
            )
        if self.rows_per_update % self.rows_per_pass:
            raise UserError(
                f"micro_rows={self.micro_rows} does not divide the {self.rows_per_update} responses of an update "
                f"({self.prompts} prompts x {self.rollout.group} / {self.updates} updates)"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        if self.checkpoint.every < 1 or self.checkpoint.keep < 1:
            raise UserError("checkpoint.every and checkpoint.keep must be at least 1")
        if self.optimizer.ema_decay:
            raise UserError("optimizer.ema_decay is not kept in RL; leave it at 0")
        if self.reward.preset not in ("auto", *REWARD_PRESETS):
            raise UserError(
                f"reward.preset is {self.reward.preset!r}; choose auto, {', '.join(REWARD_PRESETS)}"
            )
        if self.reward.call_format not in CALL_FORMATS:
            raise UserError(
                f"reward.call_format is {self.reward.call_format!r}; choose one of {', '.join(CALL_FORMATS)}"
            )
        self.algorithm_config()

    @property
    def responses(self) -> int:
        """Responses in a step."""
        return self.prompts * self.rollout.group

    @property
    def rows_per_update(self) -> int:
        return self.responses // self.updates

    @property
    def rows_per_pass(self) -> int:
        return self.rows_per_update if self.micro_rows is None else self.micro_rows

    @property
    def reward_preset(self) -> str:
        return f"dcore_{self.preset}" if self.reward.preset == "auto" else self.reward.preset

    def algorithm_config(self) -> AlgorithmConfig:
        """The preset's numbers with `algorithm_fields` put in.

        With a vLLM engine importance weights are truncated at 2 unless a field says otherwise: another program's
        log-probabilities are never quite the trainer's.

        Raises:
          UserError: an item that is not `field=value`, an unknown field, a value of the wrong type.
        """
        values: dict[str, Any] = {} if self.rollout.engine == "native" else {"importance_cap": 2.0}
        for item in self.algorithm_fields:
            name, equals, value = item.partition("=")
            if not equals:
                raise UserError(f"algorithm_fields holds {item!r}; write field=value, as alpha=0.4")
            try:
                values[name.strip()] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise UserError(f"algorithm_fields: {item!r} has a value that cannot be read") from None
        given = config_from_dict(AlgorithmConfig, values, "algorithm_fields.")
        base = algorithm_preset(self.algorithm, self.preset)
        return dataclasses.replace(base, **{name: getattr(given, name) for name in values})
