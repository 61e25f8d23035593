"""Supervised fine-tuning on packed rows: config.py, step.py (the pure step), train.py (the loop)."""

from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.report import summary
from dcore_jax.sft.train import SFTResult, train, trained_decoder

__all__ = ["SFTConfig", "SFTResult", "summary", "train", "trained_decoder"]
