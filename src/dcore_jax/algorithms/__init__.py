"""The algorithms by name: their numbers, and the two steps from rollouts to a loss that every one of them takes."""

from dcore_jax.algorithms.batch import (
    PolicyBatch,
    policy_batch,
    policy_batch_denominator,
    policy_batch_loss,
)
from dcore_jax.algorithms.config import (
    ALGORITHMS,
    PRESETS,
    AlgorithmConfig,
    AlgorithmName,
    PresetName,
    algorithm_preset,
)

__all__ = [
    "ALGORITHMS",
    "PRESETS",
    "AlgorithmConfig",
    "AlgorithmName",
    "PolicyBatch",
    "PresetName",
    "algorithm_preset",
    "policy_batch",
    "policy_batch_denominator",
    "policy_batch_loss",
]
