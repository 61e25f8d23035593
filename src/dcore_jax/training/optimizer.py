"""AdamW behind a gradient clip, and its learning rate schedule."""

import optax
from flax import nnx
from jaxtyping import PyTree

from dcore_jax.training.config import OptimizerConfig

_DECAYED = {"kernel", "embedding", "head"}  # names of the matrices; norms and biases never decay


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then the schedule down to 0 at `total_steps`. The first step already has a rate above 0."""
    warmup = min(round(config.warmup * total_steps), total_steps - 1)
    peak, rest = config.learning_rate, max(total_steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup == 0:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm."""

    def decayed(params: PyTree) -> PyTree:
        flat = nnx.to_flat_state(params)
        return nnx.State.from_flat_path({path: leaf.replace(path[-1] in _DECAYED) for path, leaf in flat})

    adamw = optax.adamw(
        schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=decayed
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
