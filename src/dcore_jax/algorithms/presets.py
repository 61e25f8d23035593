"""The algorithms by name: what each one's own text says, and what the published code runs.

`paper` is the text of the algorithm, `release` the published code of D-CORE and ResT.
"""

from dataclasses import replace
from typing import get_args

from dcore_jax.algorithms.config import AlgorithmConfig, AlgorithmName, PresetName
from dcore_jax.errors import check_choice
from dcore_jax.regions.region import RELEASE_RULES, RegionValues

ALGORITHMS: tuple[str, ...] = get_args(AlgorithmName)


def _presets() -> dict[tuple[str, str], AlgorithmConfig]:
    release = AlgorithmConfig()
    # D-CORE's text: mean over each sequence first, plain k3. The dual clip is the framework's default, in no paper's text.
    paper = replace(release, aggregation="sequence_mean", kl_estimator="k3", dual_clip=None)
    dr_grpo = AlgorithmConfig(advantage="dr_grpo", aggregation="constant_length", kl_coefficient=0.0)
    dapo = AlgorithmConfig(clip_high=0.28, kl_coefficient=0.0, dynamic_sampling=True, overlong_buffer=0.2)
    gspo = AlgorithmConfig(
        ratio="sequence", clip_low=3e-4, clip_high=4e-4, dual_clip=None, aggregation="sequence_mean"
    )
    kl_cov = AlgorithmConfig(
        clip_low=None, clip_high=None, dual_clip=None, kl_coefficient=0.0, kl_cov_ratio=0.002
    )
    rest = AlgorithmConfig(kl_coefficient=0.0, region_weighting="fixed")
    presets = {
        ("da_grpo", "paper"): replace(paper, advantage="da_grpo"),
        ("da_grpo", "release"): replace(release, advantage="da_grpo", scale=2.0),
        ("grpo", "paper"): paper,
        ("grpo", "release"): release,
        # 2503.20783 has PPO's clip alone; the release has no script, its manual sets the same three options.
        ("dr_grpo", "paper"): replace(dr_grpo, dual_clip=None),
        ("dr_grpo", "release"): dr_grpo,
        ("dapo", "paper"): replace(dapo, dual_clip=None),
        ("dapo", "release"): replace(dapo, dual_clip=10.0, overlong_buffer=0.25),
        # 2507.18071 leaves the KL term out; the release's script keeps it.
        ("gspo", "paper"): replace(gspo, kl_coefficient=0.0),
        ("gspo", "release"): gspo,
        # Eq. 15 divides by the standard deviation over G, Eq. 16 bounds a rising weight by w_max alone.
        ("rest", "paper"): replace(rest, aggregation="sequence_mean", dual_clip=None, group_std="population"),
        # The authors' code runs the Llama values for every model, keeps format constant and caps parameters at 1.2.
        ("rest", "release"): replace(
            rest,
            aggregation="weighted_token_mean",
            region_weights=RegionValues(outside=0.0, format=1.0, name=1.2, parameters=0.6, thinking=0.6),
            region_rates=RegionValues(parameters=0.002, thinking=0.002),
            region_ceilings=RegionValues(outside=1.0, format=1.0, name=1.2, parameters=1.2, thinking=1.0),
            region_rules=RELEASE_RULES,
        ),
        ("rl_zvp", "paper"): replace(paper, advantage="rl_zvp", trigger="group"),
        ("rl_zvp", "release"): replace(release, advantage="rl_zvp", scale=2.0, correct="reward"),
        ("kl_cov", "paper"): kl_cov,
        ("kl_cov", "release"): kl_cov,
    }
    return {key: replace(config, name=key[0], preset=key[1]) for key, config in presets.items()}  # type: ignore[arg-type]


# (algorithm, preset) -> config.
PRESETS = _presets()


def algorithm_preset(algorithm: str, preset: str = "paper") -> AlgorithmConfig:
    """The config of an algorithm by name.

    Raises:
      UserError: an unknown algorithm or preset; the message lists the names.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    check_choice("preset", preset, get_args(PresetName))
    return PRESETS[algorithm, preset]
