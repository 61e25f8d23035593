"""Reinforcement learning from tool rewards: train.py is the loop, step.py its pure part."""

from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.report import summary
from dcore_jax.rl.train import RLResult, is_rl_run, train, trained_decoder

__all__ = ["RLConfig", "RLResult", "is_rl_run", "summary", "train", "trained_decoder"]
