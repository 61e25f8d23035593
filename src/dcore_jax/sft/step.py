"""One optimizer step of SFT, as a pure function.

The loss is a token mean over the global batch, all devices and all microbatches, so that the same batch gives the
same loss on any mesh and with any accumulation. Everything a step reports stays on the device until the loop asks for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from dcore_jax.kernels import cross_entropy
from dcore_jax.sft.config import OptimizerConfig


class Batch(NamedTuple):
    """Packed rows on the device, divided into microbatches; see data.packing.PackedBatch for the fields."""

    tokens: Int[Array, "micro rows length"]
    positions: Int[Array, "micro rows length"]
    segment_ids: Int[Array, "micro rows length"]
    loss_mask: Bool[Array, "micro rows length"]
    denominator_mask: Bool[Array, "micro rows length"]


class TrainState(NamedTuple):
    """What a run carries from step to step, and what a checkpoint holds."""

    params: PyTree
    optimizer: PyTree
    ema: PyTree | None
    step: Int[Array, ""]
    rng: Array  # key of recipes that draw; SFT itself draws nothing


class StepMetrics(NamedTuple):
    """Scalars of one step, float32 on the device."""

    loss: Float[Array, ""]  # nats per counted token, before the update
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


def loss_sum(graph: nnx.GraphDef, params: PyTree, micro: Batch) -> Float[Array, ""]:
    """Sum of -log p over the loss tokens of `[rows, length]`, in nats."""
    model = nnx.merge(graph, params)
    hidden = model.hidden(micro.tokens, micro.positions, micro.segment_ids)
    targets = jnp.roll(micro.tokens, -1, axis=-1)
    weights = predicted(micro, micro.loss_mask).astype(jnp.float32)
    return cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.unembed.astype(hidden.dtype),
        targets.reshape(-1),
        weights.reshape(-1),
    )


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then the schedule down to 0 at `total_steps`. The first step already has a rate above 0."""
    warm = min(round(config.warmup * total_steps), total_steps - 1)
    peak, rest = config.learning_rate, max(total_steps - warm, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warm == 0:
        return after
    rise = optax.linear_schedule(peak / warm, peak, max(warm - 1, 1))
    return optax.join_schedules([rise, after], [warm])


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm."""

    def decayed(params: PyTree) -> PyTree:
        flat = nnx.to_flat_state(params)
        matrices = {"kernel", "embedding", "head"}
        return nnx.State.from_flat_path({path: leaf.replace(path[-1] in matrices) for path, leaf in flat})

    adamw = optax.adamw(
        schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=decayed
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def make_train_step(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """`(state, batch) -> (state, metrics)`; jit it with the state donated.

    A loss or gradient that is not finite leaves parameters and optimizer as they were and is reported in `metrics.finite`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        # Known before the forward pass, so that every microbatch is already divided by the whole batch's count.
        denominator = jnp.maximum(predicted(batch, batch.denominator_mask).sum(), 1).astype(jnp.float32)

        def mean_loss(params: PyTree, micro: Batch) -> Float[Array, ""]:
            return loss_sum(graph, params, micro) / denominator

        if batch.tokens.shape[0] == 1:
            loss, gradient = jax.value_and_grad(mean_loss)(state.params, jax.tree.map(lambda x: x[0], batch))
        else:

            def accumulate(carry, micro):
                return jax.tree.map(jnp.add, carry, jax.value_and_grad(mean_loss)(state.params, micro)), None

            zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.params))
            (loss, gradient), _ = jax.lax.scan(accumulate, zero, batch)

        norm = optax.global_norm(gradient).astype(jnp.float32)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - ema_decay)

        def keep(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        rng = jax.random.fold_in(state.rng, 0)
        new = TrainState(
            params=keep(params, state.params),
            optimizer=keep(optimizer_state, state.optimizer),
            ema=None if ema is None else keep(ema, state.ema),
            step=state.step + 1,
            rng=rng,
        )
        held = batch.segment_ids > 0
        metrics = StepMetrics(
            loss=loss,
            gradient_norm=norm,
            tokens=held.sum().astype(jnp.float32),
            loss_tokens=predicted(batch, batch.loss_mask).sum().astype(jnp.float32),
            attended=jnp.where(held, batch.positions + 1, 0).astype(jnp.float32).sum(),
            finite=finite,
        )
        return new, metrics

    return train_step
