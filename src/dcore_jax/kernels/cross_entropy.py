"""`cross_entropy`: the weighted sum of -log p over tokens, with its gradients computed on the way forward.

The weights are known before the loss is, so one pass over blocks of tokens gives loss and gradients with three products with
the vocabulary instead of the four that recomputation needs, and blocks in which no token carries weight are never visited.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dcore_jax.errors import UserError
from dcore_jax.kernels import reference
from dcore_jax.kernels.blocked import across_shards, local_columns, onehot_minus_softmax
from dcore_jax.kernels.logprobs import logprobs_and_entropy, pad_rows, resolve
from dcore_jax.kernels.mesh_axes import Layout, current_layout, on_shards, sum_over_tokens
from dcore_jax.kernels.tiles import (
    cross_entropy_block,
    dot,
    empty,
    finish,
    merge,
    over_blocks,
    summarise,
    target_in_range,
    vocab_block,
)

GRADIENTS = ("forward", "backward")


def cross_entropy(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
    *,
    implementation: str = "auto",
    gradients: str = "forward",
) -> Float[Array, ""]:
    """`sum_t weights[t] * -log softmax(hidden[t] @ unembed)[targets[t]]`, a float32 scalar in nats.

    A token of weight 0 contributes exactly 0 to the sum and to both gradients, whatever its hidden state or target
    holds, and costs almost nothing. A weighted token with a target outside [0, vocab) makes the sum NaN.
    Differentiable in `hidden` and `unembed` (reverse mode); `weights` have no gradient.

    gradients: `forward` (the default: computed with the loss; the unembedding's gradient, in its own dtype and
    sharding, is held until the backward pass) or `backward` (by recomputation: a third more arithmetic, zero weights
    are not skipped, nothing but one float per token is held).
    implementation: as in `logprobs_and_entropy`; `reference` and `pallas` take their gradients in the backward pass.

    Raises UserError for an unknown implementation or choice of gradients.
    """
    implementation = resolve(implementation)
    if gradients not in GRADIENTS:
        raise UserError(f"gradients={gradients!r} is unknown; choose one of {', '.join(GRADIENTS)}")
    dtype = jnp.promote_types(hidden.dtype, unembed.dtype)
    hidden, unembed = hidden.astype(dtype), unembed.astype(dtype)
    weights = lax.stop_gradient(weights).astype(jnp.float32)
    if implementation == "reference":
        return reference.cross_entropy(hidden, unembed, targets, weights)
    if implementation == "blocked" and gradients == "forward":
        return _with_gradients(hidden, unembed, targets, weights)
    used = weights != 0
    logprobs, _ = logprobs_and_entropy(
        jnp.where(used[:, None], hidden, 0),
        unembed,
        jnp.where(used, targets, 0),
        implementation=implementation,
    )
    return -jnp.sum(weights * logprobs)


@jax.custom_vjp
def _with_gradients(hidden, unembed, targets, weights):
    return _on_mesh(hidden, unembed, targets, weights, differentiate=False)[0]


def _forward(hidden, unembed, targets, weights):
    loss, d_hidden, d_unembed = _on_mesh(hidden, unembed, targets, weights, differentiate=True)
    return loss, (d_hidden, d_unembed)


def _backward(residuals, cotangent):
    d_hidden, d_unembed = residuals
    return (
        (d_hidden * cotangent).astype(d_hidden.dtype),
        (d_unembed * cotangent).astype(d_unembed.dtype),
        None,
        None,
    )


_with_gradients.defvjp(_forward, _backward)


def _on_mesh(hidden, unembed, targets, weights, *, differentiate):
    layout = current_layout(*unembed.shape)
    tokens = hidden.shape[0]
    rows = -tokens % layout.token_shards
    outside = (weights != 0) & ~target_in_range(targets, unembed.shape[1])
    weights = jnp.where(outside, jnp.nan, weights)
    grads = (layout.hidden, layout.d_unembed) if differentiate else ()
    run = on_shards(
        layout,
        partial(local_cross_entropy, layout=layout, differentiate=differentiate),
        in_specs=(layout.hidden, layout.unembed, layout.tokens, layout.tokens),
        out_specs=(jax.P(), *grads),
    )
    loss, *grads = run(pad_rows(hidden, rows), unembed, pad_rows(targets, rows), pad_rows(weights, rows))
    return (loss, grads[0][:tokens], grads[1]) if differentiate else (loss,)


def local_cross_entropy(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
    *,
    layout: Layout,
    differentiate: bool,
) -> tuple[Array, ...]:
    """(loss of all devices,) or (loss, gradient of the local hidden states, gradient of the unembedding), on one shard.

    Tokens with weight are moved to the front; the loop runs only over the blocks that hold any.
    """
    (tokens, width), vocab = hidden.shape, unembed.shape[1]
    block = cross_entropy_block(tokens, vocab)
    tile = vocab_block(block, vocab)
    columns = local_columns(targets, vocab, layout.vocab_axis)
    hidden, columns, weights = (pad_rows(x, -tokens % block) for x in (hidden, columns, weights))
    used = weights != 0
    count = jnp.sum(used, dtype=jnp.int32)
    rank = jnp.where(used, jnp.cumsum(used) - 1, count + jnp.cumsum(~used) - 1)
    order = jnp.zeros_like(rank).at[rank].set(jnp.arange(rank.size, dtype=rank.dtype), unique_indices=True)
    trips = -(-count // block)
    if layout.token_axes:
        # The loop holds collectives over the vocabulary axis: every device must make the same number of trips.
        trips = lax.pmax(trips, layout.token_axes)

    def over_tokens(i, carry):
        loss, d_hidden, d_unembed, rows_of_logits = carry
        rows = lax.dynamic_slice_in_dim(order, i * block, block)
        weight, column = weights[rows], columns[rows]
        # An unused row of the last block may hold anything; 0 * NaN would still be NaN.
        state = jnp.where((weight != 0)[:, None], hidden[rows], 0)

        def measure(first, size, carry):
            part, kept = carry
            logits = dot(state, lax.dynamic_slice_in_dim(unembed, first, size, 1), (1, 0))
            if differentiate:
                kept = lax.dynamic_update_slice_in_dim(kept, logits, first, 1)
            return merge(part, summarise(logits, column - first)), kept

        part, rows_of_logits = over_blocks(vocab, tile, measure, (empty(block), rows_of_logits))
        logprob, _, logsumexp = finish(across_shards(part, layout.vocab_axis))
        loss -= jnp.sum(jnp.where(weight != 0, weight * logprob, 0))
        if not differentiate:
            return loss, d_hidden, d_unembed, rows_of_logits
        scaled = (state * -weight[:, None]).astype(state.dtype)

        def descend(first, size, carry):
            d_state, d_unembed = carry
            logits = lax.dynamic_slice_in_dim(rows_of_logits, first, size, 1)
            slope = onehot_minus_softmax(logits, logsumexp, column - first).astype(unembed.dtype)
            d_state += dot(slope, lax.dynamic_slice_in_dim(unembed, first, size, 1), (1, 1))
            # [vocab, width]: XLA's CPU product into the other layout runs at half the speed.
            d_block = lax.dynamic_slice_in_dim(d_unembed, first, size) + dot(slope, scaled, (0, 0))
            return d_state, lax.dynamic_update_slice_in_dim(d_unembed, d_block, first, 0)

        d_state, d_unembed = over_blocks(
            vocab, tile, descend, (jnp.zeros((block, width), jnp.float32), d_unembed)
        )
        d_state *= -weight[:, None]
        return (
            loss,
            lax.dynamic_update_slice_in_dim(d_hidden, d_state, i * block, 0),
            d_unembed,
            rows_of_logits,
        )

    shapes = (hidden.shape, (vocab, width), (block, vocab)) if differentiate else ()
    start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes) or (None,) * 3
    loss, d_hidden, d_unembed, _ = lax.fori_loop(0, trips, over_tokens, (jnp.float32(0), *start))
    if layout.token_axes:
        loss = lax.psum(loss, layout.token_axes)
    if not differentiate:
        return (loss,)
    if layout.vocab_axis is not None:
        d_hidden = lax.psum(d_hidden, layout.vocab_axis)
    d_hidden = d_hidden[rank[:tokens]].astype(hidden.dtype)
    return loss, d_hidden, sum_over_tokens(d_unembed.T, layout).astype(unembed.dtype)
