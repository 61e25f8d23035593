"""AdamW behind a gradient clip, its learning rate schedule, and float32 masters of bfloat16 parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

from dcore_jax.dtypes import dtype_of
from dcore_jax.training.config import OptimizerConfig

_DECAYED = {"kernel", "embedding", "head"}  # names of the matrices; norms and biases never decay


class MasterState(NamedTuple):
    """The optimizer's state where the parameters are bfloat16."""

    masters: PyTree  # float32; the parameters are their casts
    inner: PyTree  # of the optimizer that moves the masters


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
        schedule,
        config.beta1,
        config.beta2,
        config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
        mu_dtype=dtype_of(config.moments),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def float32(tree: PyTree) -> PyTree:
    """The arrays of a tree in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def on_device(tree: PyTree) -> PyTree:
    """The arrays of a tree in device memory; those that are there already stay as they are. Pure, also under `jit`."""

    def moved(x: jax.Array) -> jax.Array:
        on_host = jax.typeof(x).memory_space == jax.memory.Space.Host
        return jax.device_put(x, jax.memory.Space.Device) if on_host else x

    return jax.tree.map(moved, tree)


def with_float32_masters(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` on float32 copies of the parameters, which its state holds; `apply_gradient` casts them to the parameters.

    bfloat16 has 8 bits: an AdamW update is about the learning rate, and below 1/512 of a parameter it rounds to nothing. The
    masters keep it. In bytes a parameter: 2, its gradient 2 (4 while microbatches are added up), master 4, moments 8.
    """

    def init(params: PyTree) -> MasterState:
        masters = float32(params)
        return MasterState(masters, optimizer.init(masters))

    def update(gradient: PyTree, state: MasterState, params: PyTree = None) -> tuple[PyTree, MasterState]:
        del params  # its masters are in the state
        updates, inner = optimizer.update(float32(gradient), state.inner, state.masters)
        return updates, MasterState(optax.apply_updates(state.masters, updates), inner)

    return optax.GradientTransformation(init, update)
