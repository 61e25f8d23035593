"""The pure functions of a step: log-probabilities and entropies of responses, and one optimizer update."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from dcore_jax.algorithms import (
    AlgorithmConfig,
    PolicyBatch,
    choose_penalised,
    policy_batch_denominator,
    policy_batch_loss,
)
from dcore_jax.kernels import logprobs_and_entropy
from dcore_jax.losses import PolicySums, add_policy_sums
from dcore_jax.rl.batch import Sequences
from dcore_jax.training.state import TrainState, apply_gradient


class Minibatch(NamedTuple):
    """The responses of one update, divided into microbatches: every array is `[micro, rows, ...]`."""

    sequences: Sequences
    policy: PolicyBatch


class UpdateMetrics(NamedTuple):
    """Of one update, on the device."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]  # before clipping
    finite: Bool[Array, ""]
    sums: PolicySums


def response_logprobs(
    graph: nnx.GraphDef, params: PyTree, sequences: Sequences, *, temperature: float = 1.0
) -> tuple[Float[Array, "rows tokens"], Float[Array, "rows tokens"]]:
    """Log-probabilities of the sampled tokens and entropies of their distributions, in nats; 0 outside the mask.

    At the sampling temperature, of the full distribution: what an engine reports. The head runs on responses only.
    """
    model = nnx.merge(graph, params)
    hidden = model.hidden(sequences.tokens, None, sequences.segment_ids)
    mask = jnp.asarray(sequences.mask)
    last = sequences.tokens.shape[1] - 1
    at = jnp.clip(sequences.starts[:, None] + jnp.arange(mask.shape[1]), 1, last)
    targets = jnp.take_along_axis(jnp.asarray(sequences.tokens), at, axis=1)
    before = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
    logprobs, entropy = logprobs_and_entropy(
        before.reshape(-1, hidden.shape[-1]),
        model.unembed.astype(hidden.dtype),
        targets.reshape(-1),
        temperature=temperature,
    )
    return jnp.where(mask, logprobs.reshape(mask.shape), 0.0), jnp.where(
        mask, entropy.reshape(mask.shape), 0.0
    )


def make_update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: AlgorithmConfig,
    *,
    max_response: int,
    temperature: float = 1.0,
) -> Callable[[TrainState, Minibatch], tuple[TrainState, UpdateMetrics]]:
    """`(state, minibatch) -> (state, metrics)`; jit it with the state donated.

    The loss's denominator is that of the whole minibatch, so the microbatches' gradients add up to its own; so is KL-Cov's
    choice of tokens, for which several microbatches cost one more forward pass. A loss or
    gradient that is not finite leaves parameters and optimizer as they were and is reported in `metrics.finite`.
    """

    def loss(params: PyTree, micro: Minibatch, denominator: Array) -> tuple[Array, PolicySums]:
        logprobs, entropy = response_logprobs(graph, params, micro.sequences, temperature=temperature)
        return policy_batch_loss(config, logprobs, micro.policy, denominator=denominator, entropy=entropy)

    def penalised(params: PyTree, minibatch: Minibatch, flat: PolicyBatch) -> Minibatch:
        """With KL-Cov's choice among all tokens of the minibatch, by the policy before this update."""
        logprobs = jax.lax.map(
            lambda rows: response_logprobs(graph, params, rows, temperature=temperature)[0],
            minibatch.sequences,
        )
        chosen = choose_penalised(config, logprobs.reshape(flat.mask.shape), flat)
        split = minibatch.policy.mask.shape[:2]
        return minibatch._replace(policy=jax.tree.map(lambda x: x.reshape(*split, *x.shape[1:]), chosen))

    def update(state: TrainState, minibatch: Minibatch) -> tuple[TrainState, UpdateMetrics]:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), minibatch.policy)
        denominator = policy_batch_denominator(config, flat, max_length=max_response)
        gradient_of = jax.value_and_grad(partial(loss, denominator=denominator), has_aux=True)
        if minibatch.sequences.tokens.shape[0] == 1:
            (value, sums), gradient = gradient_of(state.params, jax.tree.map(lambda x: x[0], minibatch))
        else:
            if config.kl_cov_ratio:
                minibatch = penalised(state.params, minibatch, flat)

            def accumulate(carry, micro):
                (value, sums), gradient = gradient_of(state.params, micro)
                added = jax.tree.map(jnp.add, (carry[0], carry[2]), (value, gradient))
                return (added[0], add_policy_sums(carry[1], sums), added[1]), None

            zero = (
                jnp.zeros((), jnp.float32),
                _no_sums(),
                jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), state.params),
            )
            (value, sums, gradient), _ = jax.lax.scan(accumulate, zero, minibatch)

        applied = apply_gradient(state, value, gradient, optimizer)
        return applied.state, UpdateMetrics(value, applied.gradient_norm, applied.finite, sums)

    return update


def _no_sums() -> PolicySums:
    """What `add_policy_sums` leaves unchanged."""
    zeros = PolicySums(*(jnp.zeros((), jnp.float32) for _ in PolicySums._fields))
    return zeros._replace(ratio_min=jnp.float32(jnp.inf), ratio_max=jnp.float32(-jnp.inf))
