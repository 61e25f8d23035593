"""Reinforcement learning from tool rewards: config.py, prompts.py, rollouts.py, step.py (pure), train.py (the loop)."""

from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.report import summary
from dcore_jax.rl.train import RLResult, train, trained_decoder

__all__ = ["RLConfig", "RLResult", "summary", "train", "trained_decoder"]
