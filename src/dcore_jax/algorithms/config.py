"""Every algorithm as one frozen record of numbers, each with its source.

`paper` is what the algorithm's own text says; `release` is what the published code of D-CORE and ResT runs.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from dcore_jax.errors import UserError
from dcore_jax.regions.region import PAPER_RULES, RELEASE_RULES, RegionRules, RegionValues

AlgorithmName = Literal["da_grpo", "grpo", "dr_grpo", "dapo", "gspo", "rest", "rl_zvp", "kl_cov"]
PresetName = Literal["paper", "release"]
Aggregation = Literal["token_mean", "sequence_mean", "constant_length", "weighted_token_mean"]
ALGORITHMS: tuple[str, ...] = get_args(AlgorithmName)

# ResT Table F.1 (Qwen3). The text gives no number for tokens outside the regions: 1 is neutral.
_QWEN3_WEIGHTS = RegionValues(outside=1.0, format=0.95, name=1.2, parameters=0.8, thinking=0.016)
_QWEN3_RATES = RegionValues(format=-0.003, parameters=0.003, thinking=6e-5)
_CEILINGS = RegionValues(outside=1.0, format=1.0, name=1.2, parameters=1.2, thinking=1.0)


@dataclass(frozen=True)
class AlgorithmConfig:
    """What turns rewards and log-probabilities into a loss. The defaults are GRPO as D-CORE's release runs it."""

    # Which function of dcore_jax.advantages; DAPO, GSPO, ResT and KL-Cov all start from GRPO's.
    advantage: Literal["grpo", "dr_grpo", "da_grpo", "rl_zvp"] = "grpo"
    # Slope of the entropy bonus psi(H) = min(alpha H, delta): D-CORE Eq. 7, 0.1 (its Table 3 sweeps it).
    alpha: float = 0.1
    # Ceiling of the bonus: D-CORE, 0.5.
    delta: float = 0.5
    # How often the bonus is added: 1 in D-CORE Eq. 7, 2 in the released code (aliased tensors).
    scale: float = 1.0
    # Rewards this close to their group's mean count as equal: D-CORE Eq. 6's zeta, a rounding tolerance.
    zeta: float = 1e-8
    # Which responses: zero, at their group's mean (D-CORE Eq. 20, released code); group, without variance (2509.21880);
    # below, D-CORE's Eq. 6 as printed.
    trigger: Literal["zero", "group", "below"] = "zero"
    # RL-ZVP's correct responses: those with exactly the reference's calls, or with a reward above 0 (release).
    correct: Literal["calls", "reward"] = "calls"
    # Whose entropy: of the sampling policy (release), of the updated policy, -log pi_old (Theorem A.2).
    entropy_source: Literal["old", "current", "surprisal"] = "old"

    # token: PPO's ratio; sequence: GSPO's.
    ratio: Literal["token", "sequence"] = "token"
    # Lower clip: 0.2 in D-CORE's appendix and DAPO, 3e-4 in GSPO, None (no clip) in KL-Cov.
    clip_low: float | None = 0.2
    # Upper clip: 0.2 in D-CORE's appendix, 0.28 in DAPO, 4e-4 in GSPO, None in KL-Cov.
    clip_high: float | None = 0.2
    # Bound for negative advantages (1912.09729): 3 in D-CORE, 10 in its DAPO script, None is no bound.
    dual_clip: float | None = 3.0
    # token_mean: DAPO, the releases; sequence_mean: GRPO's and D-CORE's text; constant_length: Dr.GRPO.
    aggregation: Aggregation = "token_mean"
    # KL to the reference model in the loss: D-CORE 0.001; 0 in DAPO, Dr.GRPO, KL-Cov and ResT.
    kl_coefficient: float = 0.001
    # k3 is D-CORE's text, low_var_kl the released code's clamped k3.
    kl_estimator: Literal["k1", "k2", "k3", "low_var_kl"] = "low_var_kl"
    # Cap of the truncated importance weights against the engine; none of the papers has them. 2 is usual.
    importance_cap: float | None = None

    # Drop groups without reward variance and sample again: DAPO, the release's GRPO with dynamic sampling.
    dynamic_sampling: bool = False
    # Rounds of sampling before giving up: 10 in the release's DAPO script.
    max_sampling_rounds: int = 10
    # Last share of the length limit where DAPO's penalty rises: 4096/20480, release 1024/4096; 0 is off.
    overlong_buffer: float = 0.0
    # Height of that penalty: 1 in DAPO and in the release.
    overlong_factor: float = 1.0
    # Leave responses that were cut off out of the loss: a variant of DAPO, off in every preset.
    drop_overlong: bool = False

    # Share of tokens that KL-Cov penalises: 0.002 in 2505.22617 (7B) and in the release; 0 is off.
    kl_cov_ratio: float = 0.0
    # Coefficient of KL-Cov's penalty: 1 in 2505.22617 and in the release.
    kl_cov_coefficient: float = 1.0

    # ResT's initial weights: fixed (the table), inverse 1/H or collision 1/(1 - exp(-H)) (2509.21826 Eq. 9).
    region_weighting: Literal["none", "fixed", "inverse", "collision"] = "none"
    # Table of initial weights: ResT Table F.1 (Qwen3); the release runs Table F.2 (Llama) for every model.
    region_weights: RegionValues = _QWEN3_WEIGHTS
    # Change per training step: ResT Table F.1's alpha_f = alpha_p = 0.003 and alpha_t = 6e-5.
    region_rates: RegionValues = _QWEN3_RATES
    # Where a rise of the fixed table ends: at the name's weight, thinking at 1 (release); the text gives no ceilings, and
    # weights from entropies rise to weight_max.
    region_ceilings: RegionValues = _CEILINGS
    # Weights are clipped before they are normalised: from 0.001 in the release.
    weight_min: float = 0.001
    # To 8 in the release.
    weight_max: float = 8.0
    # Borders of regions: all calls and their syntax, or the first call of a block and tags (release).
    region_rules: RegionRules = PAPER_RULES

    @property
    def needs_reference(self) -> bool:
        """Whether the loss needs the reference model's log-probabilities."""
        return self.kl_coefficient != 0

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
        return shaped or self.region_weighting in ("inverse", "collision")


def _presets() -> dict[tuple[str, str], AlgorithmConfig]:
    release = AlgorithmConfig()
    # D-CORE's text: mean over each sequence first, plain k3.
    paper = replace(release, aggregation="sequence_mean", kl_estimator="k3")
    dr_grpo = AlgorithmConfig(advantage="dr_grpo", aggregation="constant_length", kl_coefficient=0.0)
    dapo = AlgorithmConfig(clip_high=0.28, kl_coefficient=0.0, dynamic_sampling=True, overlong_buffer=0.2)
    gspo = AlgorithmConfig(
        ratio="sequence", clip_low=3e-4, clip_high=4e-4, dual_clip=None, aggregation="sequence_mean"
    )
    kl_cov = AlgorithmConfig(
        clip_low=None, clip_high=None, dual_clip=None, kl_coefficient=0.0, kl_cov_ratio=0.002
    )
    rest = AlgorithmConfig(kl_coefficient=0.0, region_weighting="fixed")
    return {
        ("da_grpo", "paper"): replace(paper, advantage="da_grpo"),
        ("da_grpo", "release"): replace(release, advantage="da_grpo", scale=2.0),
        ("grpo", "paper"): paper,
        ("grpo", "release"): release,
        # 2503.20783 has PPO's clip alone; the release has no script, its manual turns the same three
        # switches.
        ("dr_grpo", "paper"): replace(dr_grpo, dual_clip=None),
        ("dr_grpo", "release"): dr_grpo,
        ("dapo", "paper"): replace(dapo, dual_clip=None),
        ("dapo", "release"): replace(dapo, dual_clip=10.0, overlong_buffer=0.25),
        # 2507.18071 leaves the KL term out; the release's script keeps it.
        ("gspo", "paper"): replace(gspo, kl_coefficient=0.0),
        ("gspo", "release"): gspo,
        ("rest", "paper"): replace(rest, aggregation="sequence_mean"),
        # The authors' code runs the Llama values for every model, keeps format constant and caps parameters
        # at 1.2.
        ("rest", "release"): replace(
            rest,
            aggregation="weighted_token_mean",
            region_weights=RegionValues(outside=0.0, format=1.0, name=1.2, parameters=0.6, thinking=0.6),
            region_rates=RegionValues(parameters=0.002, thinking=0.002),
            region_rules=RELEASE_RULES,
        ),
        ("rl_zvp", "paper"): replace(paper, advantage="rl_zvp", trigger="group"),
        ("rl_zvp", "release"): replace(release, advantage="rl_zvp", scale=2.0, correct="reward"),
        ("kl_cov", "paper"): kl_cov,
        ("kl_cov", "release"): kl_cov,
    }


# (algorithm, preset) -> config.
PRESETS = _presets()


def algorithm_preset(algorithm: str, preset: str = "paper") -> AlgorithmConfig:
    """The config of an algorithm by name. Raises `UserError` that lists the names."""
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm {algorithm!r} is unknown; choose one of {', '.join(ALGORITHMS)}")
    if preset not in get_args(PresetName):
        raise UserError(f"preset {preset!r} is unknown; choose paper or release")
    return PRESETS[algorithm, preset]
