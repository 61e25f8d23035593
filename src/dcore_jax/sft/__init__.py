"""Supervised fine-tuning on packed rows: train.py is the loop, step.py its pure part, base.py the nano base of other recipes."""

from dcore_jax.sft.base import base_model
from dcore_jax.sft.config import PackingConfig, SFTConfig
from dcore_jax.sft.report import summary
from dcore_jax.sft.train import SFTResult, train

__all__ = ["PackingConfig", "SFTConfig", "SFTResult", "base_model", "summary", "train"]
