"""One optimizer step of SFT, as a pure function.

The loss is a token mean over the global batch, all devices and all microbatches, so that the same batch gives the
same loss on any mesh and with any accumulation. With weights it is the weighted mean: the sum of w * -log p over the tokens of
`loss_mask`, divided by the sum of w over those of `denominator_mask`. So a weight says how much a token counts beside the others
of its batch, a token of weight 0 is as one outside both masks, and weights that are all equal change nothing. Everything a step
reports stays on the device until the loop asks for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from dcore_jax.kernels import cross_entropy
from dcore_jax.training.state import TrainState, apply_gradient, whole_model


class Batch(NamedTuple):
    """Packed rows on the device, divided into microbatches; see data.packing.PackedBatch for the fields."""

    tokens: Int[Array, "micro rows length"]
    positions: Int[Array, "micro rows length"]
    segment_ids: Int[Array, "micro rows length"]
    loss_mask: Bool[Array, "micro rows length"]
    denominator_mask: Bool[Array, "micro rows length"]
    weights: Float[Array, "micro rows length"] | None = None


class StepMetrics(NamedTuple):
    """Scalars of one step, float32 on the device."""

    loss: Float[Array, ""]  # nats per counted token, before the update; with weights, per unit of weight
    gradient_norm: Float[Array, ""]  # before clipping
    tokens: Float[Array, ""]  # that are no padding
    loss_tokens: Float[Array, ""]  # in the sum
    attended: Float[Array, ""]  # keys seen, summed over tokens
    finite: Bool[Array, ""]


def predicted(batch: Batch, mask: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """Turns a mask over predicted tokens into one over the positions that predict them: the token before, same segment."""
    ids = batch.segment_ids
    same = (ids[..., 1:] == ids[..., :-1]) & (ids[..., 1:] > 0) & mask[..., 1:]
    return jnp.pad(same, [(0, 0)] * (ids.ndim - 1) + [(0, 1)])


def predicted_weights(batch: Batch, mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """`predicted` as float32, with the predicted token's weight where the batch has weights."""
    positions = predicted(batch, mask).astype(jnp.float32)
    return positions if batch.weights is None else positions * jnp.roll(batch.weights, -1, axis=-1)


def loss_sum(graph: nnx.GraphDef, params: PyTree, micro: Batch) -> Float[Array, ""]:
    """Sum of -log p over the loss tokens of `[rows, length]`, in nats, each times its weight."""
    model = nnx.merge(graph, params)
    hidden = model.hidden(micro.tokens, micro.positions, micro.segment_ids)
    targets = jnp.roll(micro.tokens, -1, axis=-1)
    weights = predicted_weights(micro, micro.loss_mask)
    return cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head_in(hidden.dtype),
        targets.reshape(-1),
        weights.reshape(-1),
    )


def make_train_step(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """`(state, batch, frozen=None) -> (state, metrics)`; jit it with the state donated.

    `frozen` are the parameters of a LoRA run that are not trained: they get no gradient, no moments, and are not returned.
    A loss or gradient that is not finite leaves parameters and optimizer as they were and is reported in `metrics.finite`.
    """

    def train_step(
        state: TrainState, batch: Batch, frozen: PyTree | None = None
    ) -> tuple[TrainState, StepMetrics]:
        # Known before the forward pass, so that every microbatch is already divided by the whole batch's count.
        if batch.weights is None:
            denominator = jnp.maximum(predicted(batch, batch.denominator_mask).sum(), 1).astype(jnp.float32)
        else:
            counted = predicted_weights(batch, batch.denominator_mask).sum()
            denominator = jnp.where(counted > 0, counted, 1.0)

        def mean_loss(params: PyTree, micro: Batch) -> Float[Array, ""]:
            return loss_sum(graph, whole_model(params, frozen), micro) / denominator

        if batch.tokens.shape[0] == 1:
            loss, gradient = jax.value_and_grad(mean_loss)(state.params, jax.tree.map(lambda x: x[0], batch))
        else:

            def accumulate(carry, micro):
                return jax.tree.map(jnp.add, carry, jax.value_and_grad(mean_loss)(state.params, micro)), None

            zero = (
                jnp.zeros((), jnp.float32),
                jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), state.params),
            )
            (loss, gradient), _ = jax.lax.scan(accumulate, zero, batch)

        applied = apply_gradient(state, loss, gradient, optimizer, ema_decay=ema_decay)
        held = batch.segment_ids > 0
        metrics = StepMetrics(
            loss=loss,
            gradient_norm=applied.gradient_norm,
            tokens=held.sum().astype(jnp.float32),
            loss_tokens=predicted(batch, batch.loss_mask).sum().astype(jnp.float32),
            attended=jnp.where(held, batch.positions + 1, 0).astype(jnp.float32).sum(),
            finite=applied.finite,
        )
        return applied.state, metrics

    return train_step
