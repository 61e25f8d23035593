"""Reinforcement learning from tool rewards: run.py is the loop, step.py its pure part."""

from typing import TYPE_CHECKING

from dcore_jax.lazy import keep_old_module, lazy_names

if TYPE_CHECKING:
    from dcore_jax.rl.batch import response_arrays
    from dcore_jax.rl.config import EvaluationConfig, RewardConfig, RLConfig, RolloutConfig, RowConfig
    from dcore_jax.rl.report import summary
    from dcore_jax.rl.rows import pack_rows
    from dcore_jax.rl.run import RLResult, train
    from dcore_jax.rl.step import response_logprobs

__all__ = [
    "EvaluationConfig",
    "RLConfig",
    "RLResult",
    "RewardConfig",
    "RolloutConfig",
    "RowConfig",
    "pack_rows",
    "response_arrays",
    "response_logprobs",
    "summary",
    "train",
]
__getattr__ = lazy_names(
    __name__,
    {
        "EvaluationConfig": "config",
        "RLConfig": "config",
        "RLResult": "run",
        "RewardConfig": "config",
        "RolloutConfig": "config",
        "RowConfig": "config",
        "pack_rows": "rows",
        "response_arrays": "batch",
        "response_logprobs": "step",
        "summary": "report",
        "train": "run",
    },
)
keep_old_module(__name__, "train", "run")
