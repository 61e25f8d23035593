"""What every training recipe stands on: state, optimizer, run folder, stop signals, and the policy of a finished run."""

from typing import TYPE_CHECKING

from dcore_jax.lazy import lazy_names

if TYPE_CHECKING:
    from dcore_jax.training.config import CheckpointConfig, ComputeConfig, OptimizerConfig
    from dcore_jax.training.optimizer import learning_rate_schedule, make_optimizer
    from dcore_jax.training.policy import load_policy
    from dcore_jax.training.setup import TrainSetup
    from dcore_jax.training.state import AppliedGradient, TrainState, apply_gradient

__all__ = [
    "AppliedGradient",
    "CheckpointConfig",
    "ComputeConfig",
    "OptimizerConfig",
    "TrainSetup",
    "TrainState",
    "apply_gradient",
    "learning_rate_schedule",
    "load_policy",
    "make_optimizer",
]
__getattr__ = lazy_names(
    __name__,
    {
        "AppliedGradient": "state",
        "CheckpointConfig": "config",
        "ComputeConfig": "config",
        "OptimizerConfig": "config",
        "TrainSetup": "setup",
        "TrainState": "state",
        "apply_gradient": "state",
        "learning_rate_schedule": "optimizer",
        "load_policy": "policy",
        "make_optimizer": "optimizer",
    },
)
