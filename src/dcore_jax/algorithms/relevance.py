"""Which numbers of an algorithm's config change anything, so that none is set without effect."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dcore_jax.algorithms.config import AlgorithmConfig
from dcore_jax.algorithms.presets import algorithm_preset
from dcore_jax.errors import UserError
from dcore_jax.regions.region import RegionValues


def relevant_fields(config: AlgorithmConfig) -> frozenset[str]:
    """Names of the fields that change anything for this config; fields of a nested record by their dotted names.

    A field that is not named here may have any allowed value: advantages, loss, rollouts and metrics stay the same.
    Fields that switch something on (advantage, ratio, region_weighting, kl_cov_ratio, ...) are always relevant.
    """
    shaped = config.advantage in ("da_grpo", "rl_zvp")
    da_grpo = config.advantage == "da_grpo"
    # Every A < zeta is replaced by a bonus of at least 0, so nothing is left for the bounds of negative advantages.
    negative = not (da_grpo and config.trigger == "below")
    weighted = config.region_weighting != "none"
    relevant = {
        **dict.fromkeys(("alpha", "scale", "zeta", "trigger"), shaped),
        **dict.fromkeys(("delta", "entropy_source"), da_grpo),
        "group_std": config.advantage == "grpo",
        "correct": config.advantage == "rl_zvp",
        **dict.fromkeys(("clip_low", "dual_clip"), negative),
        "kl_estimator": config.kl_coefficient != 0,
        "reward_kl_estimator": config.reward_kl_coefficient != 0,
        "max_sampling_rounds": config.dynamic_sampling,
        "overlong_factor": config.overlong_buffer > 0,
        "kl_cov_coefficient": config.kl_cov_ratio > 0,
        "ablation": weighted,
        **dict.fromkeys(("weight_min", "weight_max"), weighted and config.ablation != "uniform"),
        **_region_fields(config),
    }
    return frozenset(name for name, _ in _leaves(config) if relevant.get(name, True))


def check_changes(config: AlgorithmConfig) -> None:
    """Refuses changes of a preset that change nothing.

    Args:
      config: a preset with changes; `config.name` and `config.preset` say which.

    Raises:
      UserError: a field differs from the preset's and is not in `relevant_fields(config)`; the message names every
        such field and the algorithm's options.
    """
    name = config.name
    before, relevant = dict(_leaves(algorithm_preset(name, config.preset))), relevant_fields(config)
    idle = [
        f"algorithm.{field}={value}"
        for field, value in _leaves(config)
        if value != before[field] and field not in relevant
    ]
    if idle:
        options = dict.fromkeys(field.partition(".")[0] for field, _ in _leaves(config) if field in relevant)
        verb = "changes" if len(idle) == 1 else "change"
        raise UserError(
            f"{' and '.join(idle)} {verb} nothing in {name}; its options are {', '.join(options)}"
        )


def _region_fields(config: AlgorithmConfig) -> dict[str, bool]:
    """Which of ResT's values of each region are used, as `algorithms.batch` and `advantages.rest_weights` do it."""
    weighted, fixed = config.region_weighting != "none", config.region_weighting == "fixed"
    alike, moves = config.ablation == "uniform", config.ablation not in ("uniform", "static")
    relevant = {}
    for field in dataclasses.fields(RegionValues):
        region = field.name
        # Entropies give the other regions' initial weights, which are above 0.
        from_table = fixed or region == "outside"
        left_out = config.ablation == "no_thinking" and region == "thinking"
        kept = (not from_table or getattr(config.region_weights, region) > 0) and not left_out
        rises = getattr(config.region_rates, region) > 0
        relevant[f"region_weights.{region}"] = weighted and from_table and not (alike or left_out)
        relevant[f"region_rates.{region}"] = weighted and kept and moves
        relevant[f"region_ceilings.{region}"] = fixed and kept and rises and moves
    return relevant


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field that is a number or a choice, in the order of the fields; labels are neither."""
    labels = ("name", "preset") if isinstance(config, AlgorithmConfig) else ()
    for field in dataclasses.fields(config):
        if field.name in labels:
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value
