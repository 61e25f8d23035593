"""Everything that decides an RL run. The defaults are the paper's for Qwen3-8B (D-CORE, appendix A.6.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from dcore_jax.algorithms import AlgorithmConfig, algorithm_preset, check_changes, relevant_fields
from dcore_jax.calls import CALL_FORMATS
from dcore_jax.config import MAY_CHANGE, config_to_dict, differences
from dcore_jax.data.chat_template import parse_options
from dcore_jax.engines.config import EngineConfig, unused_engine_options
from dcore_jax.errors import UserError, check_choice
from dcore_jax.lora import LoraConfig
from dcore_jax.metrics import Tracker
from dcore_jax.nano.config import NANO
from dcore_jax.rewards import RewardSpec, check_different, parse_reward_spec
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig

AUTO = "auto"  # the reward of the algorithm's preset
_SHORTEST_ROW = 2048  # tokens, by default: a row of small tasks holds many of them
_IMPORTANCE_CAP = 2.0  # where the sampler is not the trainer's current policy
# What an algorithm's own text runs it with, where that is not D-CORE's (ResT: 512 prompts in minibatches of 64, its release's G).
_SETTINGS: dict[str, dict[str, Any]] = {
    "rest": {
        "prompts": 512,
        "updates": 8,
        "epochs": 15,
        "rollout": {"group": 4, "max_prompt": 2048, "max_response": 2048},
    }
}


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    group: int = 8
    """Responses to one prompt, G."""
    max_prompt: int = 8192
    """Tokens of a prompt; a longer one is counted and left out."""
    max_response: int = 4096
    """Tokens of a response; a longer one is cut off."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Smallest set of tokens with this mass is sampled from; 1: all."""
    top_k: int = -1
    """Most probable tokens that are sampled from; -1: all."""
    staleness: Literal[0, 1] = 0
    """1: rollouts of step n + 1 overlap the update of step n, by weights one step old."""


@dataclass(frozen=True)
class RowConfig:
    """How prompts and responses are packed into rows for the trainer. Changes nothing in what is computed beyond rounding."""

    mode: Literal["auto", "shared", "separate"] = "auto"
    """shared: a prompt once for its group; separate: with each response; auto: shared where attention can."""
    length: int | None = None
    """Tokens of the longest row, one row a device in a pass; None: a prompt with a response, at least 2,048."""
    lengths: Literal["few", "one"] = "few"
    """few: the last pass of an update takes the shortest of 12 that holds it; one: every row is the longest, one program."""

    def __post_init__(self) -> None:
        check_choice("packing.mode", self.mode, ("auto", "shared", "separate"))
        check_choice("packing.lengths", self.lengths, ("few", "one"))


@dataclass(frozen=True)
class RewardConfig:
    """How responses are scored."""

    name: tuple[str, ...] = (AUTO,)
    """auto (D-CORE's or ResT's, of --preset), another preset or my_rewards.py:score; several are added up, each with =weight."""
    call_format: str = AUTO
    """Notation that responses are scored in: python, tags, qwen, json; auto: the chat template's, or a row's own."""
    beta_accuracy: float = 1.0
    """Weight of rest_paper's accuracy part."""
    beta_format: float = 1.0
    """Weight of rest_paper's format part."""

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Takes `preset`, the field's earlier name, for `name`."""
        if "preset" in values and "name" in values:
            raise UserError("reward.preset is the earlier name of reward.name; keep reward.name alone")
        return {"name" if key == "preset" else key: value for key, value in values.items()}

    def __post_init__(self) -> None:
        check_different(self.specs)
        if self.call_format not in (AUTO, *CALL_FORMATS):
            known = ", ".join((AUTO, *CALL_FORMATS))
            raise UserError(f"reward.call_format is {self.call_format!r}; choose one of {known}")

    @property
    def specs(self) -> tuple[RewardSpec, ...]:
        """The names read, with their weights; `auto` among them."""
        return tuple(parse_reward_spec(text, further=(AUTO,)) for text in self.name)


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy answers to a fixed set of prompts, before the first step and after the last."""

    prompts: int = 0
    """How many prompts; 0: no evaluation."""
    data: tuple[str, ...] = ()
    """Prompts, named as in data; empty: held-out tasks of the tool world."""
    every: int = 0
    """Also after every so many steps; 0: only before and after."""
    benchmarks: tuple[str, ...] = ()
    """What is played then, but for the start: `toolworld:100`, `bfcl:live_simple`; the first decides the best step."""


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup=0.0, weight_decay=0.01)


def _checkpoint() -> CheckpointConfig:
    return CheckpointConfig(every=20)


@dataclass(frozen=True)
class RLConfig:
    """Reinforcement learning from tool rewards."""

    # Options that decide the defaults of others, and short spellings.
    DECIDING: ClassVar = (
        "model",
        "algorithm.name",
        "algorithm.preset",
        "engine.name",
        "lora.rank",
        "reward.name",
        "rollout.staleness",
    )
    ALIASES: ClassVar = {"algorithm.preset": "preset"}
    RENAMED: ClassVar = {"reward.preset": "reward"}

    model: str = ""
    """Hugging Face folder or hub id; `nano`: the embedded small Qwen3, as `base` makes it."""
    data: tuple[str, ...] = ()
    """Files, folders, hub datasets (`owner/name:split=train,weight=0.5`); `toolworld:512,kinds=single`: embedded tasks."""
    output: str = field(default="runs/rl", metadata=MAY_CHANGE)
    """Folder of the run; the same line started again goes on from its last checkpoint."""
    mesh: str | None = field(default=None, metadata=MAY_CHANGE)
    """Devices: `8` (fsdp), or `data=2,fsdp=4`; None: all devices."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Rounds of rollouts and updates; None: as many as `epochs` need."""
    epochs: int = field(default=3, metadata=MAY_CHANGE)
    """Passes over the prompts, where `steps` is not given."""
    prompts: int = 32
    """Prompts per step, over all devices."""
    updates: int = 4
    """Optimizer updates per step, each on prompts / updates of the prompts."""
    reference_on_host: bool = False
    """Keep the KL's reference model in host memory between its uses."""
    reports: bool = False
    """Also take turns that report tool results as prompts, rewarded for making no further call."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables for the model's chat template, `key=value` each: `enable_thinking=false`."""
    benchmarks: tuple[str, ...] = ()
    """Evaluation files (BFCL, API-Bank); prompts that match an item of theirs are counted and left out."""
    strict: bool = False
    """Stop at the first prompt that cannot be used, naming file and line, instead of counting it."""
    seed: int = 0
    """Seed of prompt order and sampling."""
    trackers: tuple[Tracker, ...] = field(default=(), metadata=MAY_CHANGE)
    """Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio."""
    base: str = "base_rl_nano"
    """SFT config, a name or a file, that makes the model where --model is `nano`; trained once."""
    algorithm: AlgorithmConfig = field(default_factory=lambda: algorithm_preset("da_grpo", "paper"))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    packing: RowConfig = field(default_factory=RowConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=_checkpoint)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Puts the numbers of the algorithm's preset, and of what it is run with, behind those that are given."""
        if "micro_rows" in values:
            raise UserError(
                "micro_rows is gone: a pass is one packed row on each device; packing.length bounds it, in tokens"
            )
        given = values.get("algorithm", {})
        given = {"name": given} if isinstance(given, str) else given
        if not isinstance(given, Mapping):  # the reader says what is wrong with it
            return dict(values)
        preset = algorithm_preset(given.get("name", "da_grpo"), given.get("preset", "paper"))
        numbers = _behind(config_to_dict(preset), given)
        return {**_behind(_SETTINGS.get(preset.name, {}), values), "algorithm": numbers}

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.updates < 1 or self.prompts % self.updates:
            raise UserError(
                f"prompts={self.prompts} must be a positive multiple of updates={self.updates}, each of which takes whole groups"
            )
        positive = {
            "epochs": self.epochs,
            "steps": self.steps,
            "rollout.group": self.rollout.group,
            "rollout.max_prompt": self.rollout.max_prompt,
            "rollout.max_response": self.rollout.max_response,
        }
        natural = {
            "seed": self.seed,
            "evaluation.prompts": self.evaluation.prompts,
            "evaluation.every": self.evaluation.every,
        }
        for values, least in ((positive, 1), (natural, 0)):
            for name, value in values.items():
                if value is not None and value < least:
                    raise UserError(f"{name}={value} must be at least {least}")
        if self.engine.name != "native" and (self.rollout.top_p < 1 or self.rollout.top_k > 0):
            raise UserError(
                f"engine {self.engine.name} gives log-probabilities of what top-p and top-k left over, which RL cannot use; "
                "set rollout.top_p 1 and rollout.top_k -1"
            )
        longest = self.rollout.max_prompt + self.rollout.max_response
        if self.packing.length is not None and self.packing.length < longest:
            raise UserError(
                f"packing.length={self.packing.length} must hold a prompt and a response, rollout.max_prompt + "
                f"rollout.max_response = {longest} tokens"
            )
        if self.lora and self.reference_on_host:
            raise UserError(
                "reference_on_host changes nothing with lora.rank: the reference is the base, which is kept once; leave it out"
            )
        if self.optimizer.ema_decay:
            raise UserError("optimizer.ema_decay is not kept in RL; leave it at 0")
        check_different(self.rewards)
        parse_options(self.chat_template_kwargs)
        check_changes(self.algorithm)

    @property
    def responses(self) -> int:
        """Responses in a step."""
        return self.prompts * self.rollout.group

    @property
    def responses_per_update(self) -> int:
        """Responses in an optimizer update."""
        return self.responses // self.updates

    @property
    def row_length(self) -> int:
        """Tokens of the longest packed row."""
        longest = self.rollout.max_prompt + self.rollout.max_response
        return max(longest, _SHORTEST_ROW) if self.packing.length is None else self.packing.length

    @property
    def rewards(self) -> tuple[RewardSpec, ...]:
        """The rewards that run, each with its weight; `auto` is D-CORE's of the algorithm's preset, with rest ResT's."""
        auto = f"{'rest' if self.algorithm.name == 'rest' else 'dcore'}_{self.algorithm.preset}"
        return tuple(RewardSpec(auto if name == AUTO else name, weight) for name, weight in self.reward.specs)

    @property
    def reward_preset(self) -> str:
        """The rewards that run, in words."""
        return " + ".join(map(str, self.rewards))

    def running_algorithm(self) -> AlgorithmConfig:
        """The algorithm as it runs: importance weights are truncated at 2 where another policy samples, unless a cap is given
        (0: never)."""
        if self.algorithm.importance_cap is None and self.sampler_differs:
            return replace(self.algorithm, importance_cap=_IMPORTANCE_CAP)
        return self.algorithm

    @property
    def sampler_differs(self) -> str:
        """Why the sampler's log-probabilities are not those of the policy that is trained; empty where they are."""
        reasons = [f"engine {self.engine.name} computes them itself"] if self.engine.name != "native" else []
        reasons += ["weights are one step old"] if self.rollout.staleness else []
        return " and ".join(reasons)

    def changed_numbers(self) -> str:
        """What differs from the algorithm's preset as it runs, as `, with alpha=0.4`; empty where nothing does."""
        running = self.running_algorithm()
        changed = differences(algorithm_preset(running.name, running.preset), running)
        return f", with {', '.join(changed)}" if changed else ""

    def importance_line(self) -> str:
        """Whether importance weights are used and why, for the run's header; empty where there is nothing to say."""
        cap, reason = self.running_algorithm().importance_cap, self.sampler_differs
        if cap:
            because = f": {reason}" if reason else ""
            return f"weights pi_trainer / pi_sampler truncated at {cap:g}, in no preset{because}"
        return f"no weights, although {reason}" if reason else ""

    def unused_options(self) -> dict[str, str]:
        """Dotted fields that change nothing under this config, or that belong in a file, each with the reason."""
        used = {"name", "preset"} | {name.partition(".")[0] for name in relevant_fields(self.algorithm)}
        preset = algorithm_preset(self.algorithm.name, self.algorithm.preset)
        unused = {
            f"algorithm.{name}": f"{self.algorithm.name} does not use it"
            for name in AlgorithmConfig.__dataclass_fields__
            if name not in used
        }
        for name in _STRUCTURE:
            if getattr(self.algorithm, name) == getattr(preset, name) and name not in unused:
                unused[f"algorithm.{name}"] = (
                    f"it would make another algorithm of {self.algorithm.name}; set it in a config file"
                )
        if self.engine.name == "native" and not self.rollout.staleness:
            unused["algorithm.importance_cap"] = (
                "it is for another engine's samples, or for --rollout.staleness 1"
            )
        unused |= dict.fromkeys(_FILE_ONLY, "few need it; set it in a config file")
        unused["optimizer.ema_decay"] = "RL keeps no moving average"
        if "rest_paper" not in {reward.name for reward in self.rewards}:
            reason = "it weighs the parts of --reward rest_paper"
            unused |= {"reward.beta_accuracy": reason, "reward.beta_format": reason}
        if self.model not in ("", NANO):
            unused["base"] = "it makes the model of --model nano"
        if self.lora:
            unused["reference_on_host"] = "the reference is the base, which is kept once"
        return unused | self.lora.unused_options() | unused_engine_options(self.engine)


def _behind(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with `defaults` for the keys that it does not have, groups one level down included."""
    merged = {**defaults, **given}
    for key, value in given.items():
        inner = defaults.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = {**inner, **value}
    return merged


# Numbers that few runs change: options in a config file only, so that `--help` stays readable.
_FILE_ONLY = (
    "algorithm.scale", "algorithm.zeta", "algorithm.region_ceilings", "algorithm.weight_min", "algorithm.weight_max",
    "algorithm.reward_kl_estimator", "algorithm.region_rates.outside", "algorithm.region_rates.name",
    "checkpoint.keep", "evaluation.benchmarks", "packing.lengths", "packing.mode", "optimizer.beta1", "optimizer.beta2",
    "optimizer.epsilon", "optimizer.offload", "reward.beta_accuracy", "reward.beta_format", "rollout.top_k", "rollout.top_p",
)  # fmt: skip
# What an algorithm is, rather than a number of it.
_STRUCTURE = (
    "advantage", "group_std", "ratio", "region_weighting", "kl_cov_ratio", "kl_estimator", "overlong_buffer", "drop_overlong",
    "region_rules",
)  # fmt: skip
