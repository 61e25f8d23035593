"""What a run carries from step to step, and the one way in which a gradient changes it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from dcore_jax.training.optimizer import MasterState, float32, on_device


class TrainState(NamedTuple):
    """What a run carries from step to step, and what a checkpoint holds."""

    params: PyTree
    optimizer: PyTree  # with float32 masters where the parameters are bfloat16
    ema: PyTree | None  # moving average of the parameters in float32, where one is kept
    step: Int[Array, ""]  # optimizer steps done
    rng: Array  # key of recipes that draw; SFT itself draws nothing


class AppliedGradient(NamedTuple):
    """What `apply_gradient` gives back."""

    state: TrainState
    gradient_norm: Float[Array, ""]  # before clipping
    finite: Bool[Array, ""]  # False: parameters, optimizer and average are as they were


def apply_gradient(
    state: TrainState,
    loss: Float[Array, ""],
    gradient: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
) -> AppliedGradient:
    """One optimizer step; pure, to be called inside a jitted step.

    A loss or gradient norm that is not finite leaves parameters, optimizer and moving average as they were and is reported,
    so that a bad batch cannot destroy a run before the host has looked. The step counter moves on either way.
    """
    norm = optax.global_norm(float32(gradient))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    held = on_device(state.optimizer)  # with `optimizer.offload` it lies in host memory between steps
    updates, optimizer_state = optimizer.update(gradient, held, state.params)
    exact = optax.apply_updates(state.params, updates)
    if isinstance(optimizer_state, MasterState):
        exact = optimizer_state.masters
    params = jax.tree.map(lambda new, old: new.astype(old.dtype), exact, state.params)

    def keep(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    ema = state.ema
    if ema is not None:
        ema = keep(optax.incremental_update(exact, ema, 1.0 - ema_decay), ema)
    new = TrainState(
        params=keep(params, state.params),
        optimizer=keep(optimizer_state, held),
        ema=ema,
        step=state.step + 1,
        rng=jax.random.fold_in(state.rng, 0),
    )
    return AppliedGradient(new, norm, finite)


def state_to_trees(state: TrainState) -> dict[str, Any]:
    """The named parts of a checkpoint; `params` and `ema` can be restored without the rest."""
    trees = {
        "params": state.params,
        "optimizer": state.optimizer,
        "counters": {"step": state.step, "rng": state.rng},
    }
    return trees if state.ema is None else {**trees, "ema": state.ema}


def state_from_trees(trees: Mapping[str, Any]) -> TrainState:
    """The inverse of `state_to_trees`."""
    counters = trees["counters"]
    return TrainState(
        trees["params"], trees["optimizer"], trees.get("ema"), counters["step"], counters["rng"]
    )
