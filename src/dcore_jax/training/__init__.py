"""What every training recipe stands on: state, optimizer, run folder, stop signals, and the policy of a finished run."""

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
