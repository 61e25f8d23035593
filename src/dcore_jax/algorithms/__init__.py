"""The algorithms by name: their numbers, and the two steps from rollouts to a loss that every one of them takes."""

from dcore_jax.algorithms.batch import (
    PolicyBatch,
    choose_penalised,
    policy_batch,
    policy_batch_denominator,
    policy_batch_loss,
)
from dcore_jax.algorithms.config import AlgorithmConfig
from dcore_jax.algorithms.presets import ALGORITHMS, PRESETS, AlgorithmName, PresetName, algorithm_preset
from dcore_jax.algorithms.relevance import check_changes, relevant_fields

__all__ = [
    "ALGORITHMS",
    "PRESETS",
    "AlgorithmConfig",
    "AlgorithmName",
    "PolicyBatch",
    "PresetName",
    "algorithm_preset",
    "check_changes",
    "choose_penalised",
    "policy_batch",
    "policy_batch_denominator",
    "policy_batch_loss",
    "relevant_fields",
]
