"""Reinforcement learning from tool rewards: train.py is the loop, step.py its pure part."""

from dcore_jax.rl.config import EvaluationConfig, RewardConfig, RLConfig, RolloutConfig
from dcore_jax.rl.report import summary
from dcore_jax.rl.train import RLResult, train

__all__ = ["EvaluationConfig", "RLConfig", "RLResult", "RewardConfig", "RolloutConfig", "summary", "train"]
