"""Supervised fine-tuning on packed rows: step.py (the pure step), train.py (the loop), base.py (the start of later stages)."""

from dcore_jax.sft.base import base_model, find_base_model
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.report import summary
from dcore_jax.sft.train import SFTResult, train, trained_decoder

__all__ = ["SFTConfig", "SFTResult", "base_model", "find_base_model", "summary", "train", "trained_decoder"]
