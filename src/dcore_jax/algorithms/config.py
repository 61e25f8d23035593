"""An algorithm as one frozen record of numbers, each with its source.

The defaults are GRPO as D-CORE's release runs it; `presets.py` has every algorithm by name.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from dcore_jax.advantages import EntropySource, GroupStd, Trigger
from dcore_jax.errors import UserError, check_choice
from dcore_jax.losses import Aggregation, KLEstimator, Ratio
from dcore_jax.regions.region import PAPER_RULES, RegionRules, RegionValues

# ResT Table F.1 (Qwen3). The text gives no number for tokens outside the regions: 1 is neutral.
_QWEN3_WEIGHTS = RegionValues(outside=1.0, format=0.95, name=1.2, parameters=0.8, thinking=0.016)
_QWEN3_RATES = RegionValues(format=-0.003, parameters=0.003, thinking=6e-5)
# Eq. 16 and 17 stop a rise at w_max alone.
_CEILINGS = RegionValues(outside=8.0, format=8.0, name=8.0, parameters=8.0, thinking=8.0)

AlgorithmName = Literal["da_grpo", "grpo", "dr_grpo", "dapo", "gspo", "rest", "rl_zvp", "kl_cov"]
PresetName = Literal["paper", "release"]


@dataclass(frozen=True)
class AlgorithmConfig:
    """What turns rewards and log-probabilities into a loss.

    Raises:
      UserError: a number outside its range, or an unknown choice, on construction.
    """

    name: AlgorithmName = "grpo"
    """Algorithm; its preset gives the numbers below, each of which may be changed."""
    preset: PresetName = "release"
    """paper: what the algorithm's text says; release: what the published code runs."""

    advantage: Literal["grpo", "dr_grpo", "da_grpo", "rl_zvp"] = "grpo"
    """Advantage function; DAPO, GSPO, ResT and KL-Cov use GRPO's."""
    group_std: GroupStd = "sample"
    """Standard deviation of a group's rewards that GRPO's advantage is divided by.
    sample: with n - 1 (release);
    population: with n (ResT Eq. 15)."""
    alpha: float = 0.1
    """Slope of the entropy bonus min(alpha * H, delta), per nat. 0.1 in D-CORE Eq. 7; its Table 3 sweeps 0.01 to 1."""
    delta: float = 0.5
    """Ceiling of the entropy bonus min(alpha * H, delta). 0.5 in D-CORE."""
    scale: float = 1.0
    """Factor of the entropy bonus. 1 in D-CORE Eq. 7; 2 in the released code, which adds the bonus twice."""
    zeta: float = 1e-8
    """Distance from the group's mean reward that counts as none. D-CORE Eq. 6's zeta, a rounding tolerance."""
    trigger: Trigger = "zero"
    """Which responses take the entropy-shaped advantage.
    zero: those at their group's mean (D-CORE Eq. 20, release);
    group: those of a group without reward variance (RL-ZVP, 2509.21880);
    below: those with A < zeta (D-CORE Eq. 6 as printed)."""
    correct: Literal["calls", "reward"] = "calls"
    """Which responses are correct for RL-ZVP.
    calls: those with exactly the reference's calls;
    reward: those with a reward above 0 (release)."""
    entropy_source: EntropySource = "old"
    """Entropy in DA-GRPO's bonus, in nats.
    old: of the policy that sampled (release);
    current: of the policy being updated;
    surprisal: -log pi_old of the token (D-CORE Theorem A.2)."""

    ratio: Ratio = "token"
    """Importance ratio of each token (PPO) or of the whole response (GSPO)."""
    clip_low: float | None = 0.2
    """The ratio is clipped below at 1 - clip_low; None: no clip. 0.2 in D-CORE and DAPO, 3e-4 in GSPO."""
    clip_high: float | None = 0.2
    """The ratio is clipped above at 1 + clip_high; None: no clip. 0.2 in D-CORE, 0.28 in DAPO, 4e-4 in GSPO."""
    dual_clip: float | None = 3.0
    """Bound of the ratio where A < 0 (1912.09729); None: no bound, as in every paper preset.
    3 is the default of the framework behind D-CORE's release, 10 its DAPO script's; no paper's text has it."""
    aggregation: Aggregation = "token_mean"
    """How the tokens' losses become one number.
    token_mean: sum / tokens (DAPO, release);
    sequence_mean: mean of the responses' means (GRPO's and D-CORE's text);
    constant_length: sum / (responses * longest response allowed) (Dr.GRPO);
    weighted_token_mean: sum / sum of the region weights (ResT's release)."""
    kl_coefficient: float = 0.001
    """Coefficient of the KL to the reference model in the loss. 0.001 in D-CORE; 0 in DAPO, Dr.GRPO, KL-Cov, ResT."""
    kl_estimator: KLEstimator = "low_var_kl"
    """Estimator of the KL to the reference model, with d = log pi_ref - log pi.
    k1: -d;
    k2: d^2 / 2;
    k3: exp(d) - d - 1 (D-CORE's text);
    low_var_kl: k3 cut off at 10 (release)."""
    reward_kl_coefficient: float = 0.0
    """Coefficient of the KL to the reference model that each reward loses (no KL in the loss). 0.001 in ToolRL's code."""
    reward_kl_estimator: KLEstimator = "k1"
    """Estimator of the KL in the reward, of the policy that sampled; those of kl_estimator. k1 in ToolRL's code."""
    importance_cap: float | None = None
    """Cap of the importance weights pi_trainer / pi_engine, in no paper; 0: no weights;
    None: a cap of 2 with vLLM or weights one step old, else no weights."""

    dynamic_sampling: bool = False
    """Replace groups without reward variance by new samples. DAPO, and a GRPO baseline of D-CORE's release."""
    max_sampling_rounds: int = 10
    """Sampling rounds in one step before groups without variance are kept. 10 in the release's DAPO script."""
    overlong_buffer: float = 0.0
    """Last share of the length limit in which DAPO's penalty rises; 0: off. 4096/20480, in the release 1024/4096."""
    overlong_factor: float = 1.0
    """Largest overlong penalty, in units of reward. 1 in DAPO and in the release."""
    drop_overlong: bool = False
    """Leave responses that were cut off out of the loss. A variant in DAPO, off in every preset."""

    kl_cov_ratio: float = 0.0
    """Share of tokens that KL-Cov penalises; 0: off. 0.002 in 2505.22617 (7B) and in the release."""
    kl_cov_coefficient: float = 1.0
    """Coefficient of KL-Cov's penalty. 1 in 2505.22617 and in the release."""

    region_weighting: Literal["none", "fixed", "inverse", "collision"] = "none"
    """Initial weights of ResT's regions (2509.21826 Eq. 9), H a region's mean entropy in nats.
    none: no weights;
    fixed: region_weights;
    inverse: 1 / H;
    collision: 1 / (1 - exp(-H))."""
    ablation: Literal["none", "static", "no_thinking", "uniform"] = "none"
    """What is taken out of ResT's weights.
    static: their curriculum, every step weighs as the first;
    no_thinking: the thoughts, which then weigh 0;
    uniform: the differences between regions, which leaves GRPO."""
    region_weights: RegionValues = _QWEN3_WEIGHTS
    """Initial weights of ResT's regions; 0 leaves a region out. Table F.1 (Qwen3); the release runs Table F.2 (Llama)."""
    region_rates: RegionValues = _QWEN3_RATES
    """Change of the region weights per training step. ResT Table F.1: alpha_f = alpha_p = 0.003, alpha_t = 6e-5."""
    region_ceilings: RegionValues = _CEILINGS
    """Where a rise of the fixed weights stops; those from entropies rise to weight_max.
    weight_max in ResT Eq. 16; 1.2 and 1 in the release."""
    weight_min: float = 0.001
    """Lower bound of the region weights before they are normalised to mean 1. 0.001 in ResT's release."""
    weight_max: float = 8.0
    """Upper bound of the region weights before they are normalised to mean 1. 8 in ResT's release."""
    region_rules: RegionRules = PAPER_RULES
    """Borders of the regions, for the weights and for the entropies that a run logs by region."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                check_choice(f"algorithm.{name}", getattr(self, name), get_args(hint))
        for name, (allowed, words) in _NUMBERS.items():
            _check_number(name, getattr(self, name), allowed, words)
        for name in ("region_weights", "region_rates", "region_ceilings"):
            allowed, words = _ANY if name == "region_rates" else _NOT_NEGATIVE
            for region, value in dataclasses.asdict(getattr(self, name)).items():
                _check_number(f"{name}.{region}", value, allowed, words)
        if self.kl_coefficient and self.reward_kl_coefficient:
            raise UserError(
                f"algorithm.kl_coefficient={self.kl_coefficient} (in the loss) and algorithm.reward_kl_coefficient="
                f"{self.reward_kl_coefficient} (in the reward) would count the KL twice; set one of them to 0"
            )
        if self.weight_min > self.weight_max:
            raise UserError(
                f"algorithm.weight_min={self.weight_min} must be at most algorithm.weight_max={self.weight_max}"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether loss or rewards need the reference model's log-probabilities."""
        return self.kl_coefficient != 0 or self.reward_kl_coefficient != 0

    @property
    def needs_regions(self) -> bool:
        """Whether the loss needs the region of every token."""
        return self.region_weighting != "none"

    @property
    def needs_correct(self) -> bool:
        """Whether the advantages need to know which responses are right."""
        return self.advantage == "rl_zvp" and self.correct == "calls"

    @property
    def needs_old_entropy(self) -> bool:
        """Whether advantages or weights need the entropy of the policy that sampled."""
        shaped = self.advantage == "rl_zvp" or (self.advantage == "da_grpo" and self.entropy_source == "old")
        return shaped or (self.region_weighting in ("inverse", "collision") and self.ablation != "uniform")


_Range = tuple[Callable[[float], bool], str]
_ANY: _Range = (lambda x: True, "")
_NOT_NEGATIVE: _Range = (lambda x: x >= 0, " and at least 0")
_SHARE: _Range = (lambda x: 0 <= x <= 1, " and in [0, 1]")
_NUMBERS: dict[str, _Range] = {
    **dict.fromkeys(("alpha", "delta", "scale", "zeta"), _NOT_NEGATIVE),
    "clip_low": (lambda x: 0 <= x < 1, " and in [0, 1), or None for no clip"),
    "clip_high": (lambda x: x >= 0, " and at least 0, or None for no clip"),
    "dual_clip": (lambda x: x > 1, " and above 1, or None for no bound"),
    **dict.fromkeys(("kl_coefficient", "reward_kl_coefficient"), _NOT_NEGATIVE),
    "importance_cap": (lambda x: x >= 0, " and at least 0 (no importance weights), or None"),
    "max_sampling_rounds": (lambda x: x >= 1, " and at least 1"),
    "overlong_buffer": _SHARE,
    "overlong_factor": _NOT_NEGATIVE,
    "kl_cov_ratio": _SHARE,
    "kl_cov_coefficient": _NOT_NEGATIVE,
    "weight_min": _NOT_NEGATIVE,
    "weight_max": (lambda x: x > 0, " and above 0"),
}


def _check_number(name: str, value: float | int | None, allowed: Callable[[float], bool], words: str) -> None:
    """Raises UserError unless `value` is None, or finite and `allowed`; the type says where None may stand."""
    if value is not None and not (math.isfinite(value) and allowed(value)):
        raise UserError(f"algorithm.{name}={value} must be finite{words}")
