"""Policy losses: from log-probabilities and advantages to a scalar whose sum over microbatches is exact."""

from dcore_jax.losses.aggregation import AGGREGATIONS, Aggregation, aggregate, loss_denominator
from dcore_jax.losses.importance import EngineGap, engine_gap, truncated_importance_weights
from dcore_jax.losses.kl import KL_ESTIMATORS, KLEstimator, kl_estimate, kl_in_reward
from dcore_jax.losses.policy import (
    RATIOS,
    PolicyMetrics,
    PolicySums,
    Ratio,
    add_policy_sums,
    policy_loss,
    policy_metrics,
)

__all__ = [
    "AGGREGATIONS",
    "KL_ESTIMATORS",
    "RATIOS",
    "Aggregation",
    "EngineGap",
    "KLEstimator",
    "PolicyMetrics",
    "PolicySums",
    "Ratio",
    "add_policy_sums",
    "aggregate",
    "engine_gap",
    "kl_estimate",
    "kl_in_reward",
    "loss_denominator",
    "policy_loss",
    "policy_metrics",
    "truncated_importance_weights",
]
