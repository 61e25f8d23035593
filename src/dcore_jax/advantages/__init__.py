"""Advantages: from rewards and entropies to one number per sampled token. Pure, jittable functions."""

from dcore_jax.advantages.covariance import kl_cov_selection
from dcore_jax.advantages.entropy_shaped import (
    ENTROPY_SOURCES,
    TRIGGERS,
    EntropySource,
    Trigger,
    da_grpo,
    entropy_bonus,
    entropy_triggered,
    rl_zvp,
    select_entropy,
    shape_by_entropy,
)
from dcore_jax.advantages.filters import drop_overlong, has_reward_variance, soft_overlong_penalty
from dcore_jax.advantages.group_relative import GroupStatistics, GroupStd, dr_grpo, group_statistics, grpo
from dcore_jax.advantages.region_weighted import (
    RegionEntropy,
    entropy_region_weights,
    region_entropy,
    region_weight_table,
    rest_weights,
)
from dcore_jax.advantages.zero_variance import zero_variance_groups

__all__ = [
    "ENTROPY_SOURCES",
    "TRIGGERS",
    "EntropySource",
    "GroupStatistics",
    "GroupStd",
    "RegionEntropy",
    "Trigger",
    "da_grpo",
    "dr_grpo",
    "drop_overlong",
    "entropy_bonus",
    "entropy_region_weights",
    "entropy_triggered",
    "group_statistics",
    "grpo",
    "has_reward_variance",
    "kl_cov_selection",
    "region_entropy",
    "region_weight_table",
    "rest_weights",
    "rl_zvp",
    "select_entropy",
    "shape_by_entropy",
    "soft_overlong_penalty",
    "zero_variance_groups",
]
