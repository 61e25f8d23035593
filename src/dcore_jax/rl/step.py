"""The pure functions of a step: log-probabilities and entropies of responses, and one optimizer update in passes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from dcore_jax.algorithms import AlgorithmConfig, PolicyBatch, policy_batch_loss
from dcore_jax.kernels import logprobs_and_entropy
from dcore_jax.losses import PolicySums, add_policy_sums
from dcore_jax.rl.rows import Rows
from dcore_jax.training.state import TrainState, apply_gradient, whole_model


class Accumulated(NamedTuple):
    """What an update has added up over its passes."""

    loss: Float[Array, ""]
    sums: PolicySums
    gradient: PyTree  # float32


class UpdateMetrics(NamedTuple):
    """Of one update, on the device."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]  # before clipping
    finite: Bool[Array, ""]
    sums: PolicySums


def response_logprobs(
    graph: nnx.GraphDef,
    params: PyTree,
    rows: Rows,
    mask: Bool[Array | np.ndarray, "responses tokens"],
    *,
    temperature: float = 1.0,
) -> tuple[
    Float[Array, "responses tokens"], Float[Array, "responses tokens"], Bool[Array, "responses tokens"]
]:
    """Log-probabilities of the sampled tokens and entropies of their distributions, in nats, and which tokens these rows hold.

    At the sampling temperature, of the full distribution: what an engine reports. The head runs on the slots of responses only.
    Both are 0 outside the rows' tokens.

    Args:
      mask: of the arrays that `rows.places` points into; only its shape matters.
    """
    model = nnx.merge(graph, params)
    hidden = model.hidden(rows.tokens, rows.positions, rows.segment_ids, rows.branches)
    before = jnp.take_along_axis(hidden, jnp.asarray(rows.predictors)[..., None], axis=1)
    found = logprobs_and_entropy(
        before.reshape(-1, hidden.shape[-1]),
        model.head_in(hidden.dtype),
        jnp.asarray(rows.targets).reshape(-1),
        temperature=temperature,
    )
    places = jnp.asarray(rows.places).reshape(-1)

    def placed(values: Array) -> Array:
        return jnp.zeros(mask.size, values.dtype).at[places].set(values, mode="drop").reshape(mask.shape)

    return placed(found[0]), placed(found[1]), placed(jnp.ones(places.shape, bool))


def nothing_accumulated(params: PyTree) -> Accumulated:
    """What an update begins with."""
    zero = jnp.zeros((), jnp.float32)
    sums = PolicySums(*(jnp.zeros((), jnp.float32) for _ in PolicySums._fields))
    sums = sums._replace(ratio_min=jnp.float32(jnp.inf), ratio_max=jnp.float32(-jnp.inf))
    return Accumulated(zero, sums, jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params))


def accumulate_pass(
    graph: nnx.GraphDef,
    config: AlgorithmConfig,
    params: PyTree,
    accumulated: Accumulated,
    rows: Rows,
    policy: PolicyBatch,
    denominator: Float[Array, ""],
    frozen: PyTree | None = None,
    *,
    temperature: float = 1.0,
) -> Accumulated:
    """Adds the loss and gradient of one pass to those before it; jit it with `accumulated` donated.

    Args:
      policy: of the update's whole minibatch, with KL-Cov's choice already made where there are several passes.
      denominator: of the whole minibatch, so that the passes add up to its loss.
      frozen: parameters that are not trained (LoRA); they get no gradient.
    """

    def loss(params: PyTree) -> tuple[Array, PolicySums]:
        model = whole_model(params, frozen)
        logprobs, entropy, here = response_logprobs(graph, model, rows, policy.mask, temperature=temperature)
        part = policy._replace(mask=policy.mask & here)
        return policy_batch_loss(config, logprobs, part, denominator=denominator, entropy=entropy)

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    # Without a barrier XLA moves the additions into the backward pass's loop over layers; libtpu then fails an internal check.
    gradient = jax.lax.optimization_barrier(gradient)
    return Accumulated(
        accumulated.loss + value,
        add_policy_sums(accumulated.sums, sums),
        jax.tree.map(jnp.add, accumulated.gradient, gradient),
    )


def finish_update(
    optimizer: optax.GradientTransformation, state: TrainState, accumulated: Accumulated
) -> tuple[TrainState, UpdateMetrics]:
    """The optimizer step of an update's gradient; jit it with the state donated.

    A loss or gradient that is not finite leaves parameters and optimizer as they were and is reported in `metrics.finite`.
    """
    applied = apply_gradient(state, accumulated.loss, accumulated.gradient, optimizer)
    return applied.state, UpdateMetrics(
        accumulated.loss, applied.gradient_norm, applied.finite, accumulated.sums
    )
