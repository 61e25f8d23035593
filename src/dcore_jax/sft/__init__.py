"""Supervised fine-tuning on packed rows: run.py is the loop, step.py its pure part, base.py the nano base of other recipes."""

from typing import TYPE_CHECKING

from dcore_jax.lazy import keep_old_module, lazy_names

if TYPE_CHECKING:
    from dcore_jax.sft.base import base_model
    from dcore_jax.sft.config import LossConfig, PackingConfig, SFTConfig
    from dcore_jax.sft.report import summary
    from dcore_jax.sft.run import SFTResult, train

__all__ = [
    "LossConfig",
    "PackingConfig",
    "SFTConfig",
    "SFTResult",
    "base_model",
    "summary",
    "train",
]
__getattr__ = lazy_names(
    __name__,
    {
        "LossConfig": "config",
        "PackingConfig": "config",
        "SFTConfig": "config",
        "SFTResult": "run",
        "base_model": "base",
        "summary": "report",
        "train": "run",
    },
)
keep_old_module(__name__, "train", "run")
