"""`cross_entropy`: the weighted sum of -log p over tokens, with its gradients computed in the forward pass.

The weights are known before the loss is, so one pass over blocks of tokens gives loss and gradients with three products with the
vocabulary (logits, d_hidden, d_unembed), where recomputation needs four; and blocks without a weighted token are never visited.
Where a mesh scatters the unembedding's gradient, its memory counts for more than the fourth product: see `_by_vocabulary`.

Shape letters: T tokens of this device, B tokens of a block, D width, V vocabulary columns of this device, W columns of a tile.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dcore_jax.errors import check_choice
from dcore_jax.kernels import reference
from dcore_jax.kernels.blocked import (
    across_shards,
    empty_gradient,
    local_columns,
    onehot_minus_softmax,
    scattered_block,
    write_block,
)
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
    """Weighted cross-entropy from hidden states, without the logits in memory.

    `sum_t weights[t] * -log softmax(hidden[t] @ unembed)[targets[t]]`, a float32 scalar in nats. Differentiable in `hidden` and
    `unembed` (reverse mode); `weights` have no gradient.

    A token of weight 0 contributes exactly 0 to the sum and to both gradients, whatever its hidden state or target is, and costs
    almost nothing. A weighted token with a target outside [0, vocab) makes the sum NaN.

    Args:
      implementation: as in `logprobs_and_entropy`; `reference` and `pallas` compute their gradients in the backward pass.
      gradients: `forward`: computed with the loss; the unembedding's gradient, in its own dtype and sharding, is held until the
        backward pass. `backward`: by recomputation; a third more arithmetic, tokens of weight 0 are not skipped, and one float
        per token is held.

    Raises:
      UserError: an unknown implementation or choice of gradients.
    """
    implementation = resolve(implementation)
    check_choice("gradients", gradients, GRADIENTS)
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
    """(loss,) or (loss, d_hidden, d_unembed) over the mesh in use; tokens are padded to a multiple of its token shards."""
    layout = current_layout(*unembed.shape)
    tokens = hidden.shape[0]
    rows = -tokens % layout.token_shards
    # A weight of NaN carries the error into the sum; an out-of-range target alone would silently count as logit 0.
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
    """Loss and gradients on one shard.

    Returns:
      (loss of all devices,), and with `differentiate` also the gradients of the local hidden states and of the unembedding.
    """
    weighted = _weighted_first(hidden, unembed, targets, weights, layout)
    if differentiate and layout.width_axis is not None:
        return _by_vocabulary(hidden, unembed, weighted, layout)
    return _by_tokens(hidden, unembed, weighted, layout, differentiate)


class _Weighted(NamedTuple):
    """A shard's tokens, of which the weighted ones are visited in blocks, and no others."""

    hidden: Float[Array, "T D"]  # padded to whole blocks, as what follows
    columns: Int[Array, " T"]  # targets relative to the device's first column of the vocabulary
    weights: Float[Array, " T"]
    order: Int[Array, " T"]  # the token at each place: weighted ones first, each part in its order
    rank: Int[Array, " T"]  # a token's place
    trips: Int[Array, ""]  # blocks that hold a weighted token
    block: int

    def at(self, i: Array) -> tuple[Array, Array, Array]:
        """Hidden states, columns and weights of block i."""
        rows_B = lax.dynamic_slice_in_dim(self.order, i * self.block, self.block)
        weights_B = self.weights[rows_B]
        # An unused row of the last block may hold anything; 0 * NaN would still be NaN.
        hidden_BxD = jnp.where((weights_B != 0)[:, None], self.hidden[rows_B], 0)
        return hidden_BxD, self.columns[rows_B], weights_B


def _weighted_first(hidden, unembed, targets, weights, layout: Layout) -> _Weighted:
    tokens, vocab = hidden.shape[0], unembed.shape[1]
    block = cross_entropy_block(tokens, vocab)
    columns_T = local_columns(targets, vocab, layout.vocab_axis)
    hidden_TxD, columns_T, weights_T = (pad_rows(x, -tokens % block) for x in (hidden, columns_T, weights))
    used_T = weights_T != 0
    count = jnp.sum(used_T, dtype=jnp.int32)
    rank_T = jnp.where(used_T, jnp.cumsum(used_T) - 1, count + jnp.cumsum(~used_T) - 1)
    order_T = (
        jnp.zeros_like(rank_T)
        .at[rank_T]
        .set(jnp.arange(rank_T.size, dtype=rank_T.dtype), unique_indices=True)
    )
    trips = -(-count // block)
    if layout.token_axes:
        # The loop holds collectives over the vocabulary axis: every device must make the same number of trips.
        trips = lax.pmax(trips, layout.token_axes)
    return _Weighted(hidden_TxD, columns_T, weights_T, order_T, rank_T, trips, block)


def _by_tokens(
    hidden, unembed, weighted: _Weighted, layout: Layout, differentiate: bool
) -> tuple[Array, ...]:
    """One pass over blocks of tokens, whose rows of logits are kept for the gradients: three products with the vocabulary."""
    (tokens, width), vocab, block = hidden.shape, unembed.shape[1], weighted.block
    tile = vocab_block(block, vocab)

    def over_tokens(i, carry):
        loss, d_hidden_TxD, d_unembed_VxD, logits_BxV = carry
        hidden_BxD, columns_B, weights_B = weighted.at(i)

        def statistics(first, size, carry):
            part, logits_BxV = carry
            logits_BxW = dot(hidden_BxD, lax.dynamic_slice_in_dim(unembed, first, size, 1), (1, 0))
            if differentiate:
                # Kept for the gradient below: B rows of logits at a time, in place of a second product per tile.
                logits_BxV = lax.dynamic_update_slice_in_dim(logits_BxV, logits_BxW, first, 1)
            return merge(part, summarise(logits_BxW, columns_B - first)), logits_BxV

        part, logits_BxV = over_blocks(vocab, tile, statistics, (empty(block), logits_BxV))
        logprob_B, _, logsumexp_B = finish(across_shards(part, layout.vocab_axis))
        loss -= jnp.sum(jnp.where(weights_B != 0, weights_B * logprob_B, 0))
        if not differentiate:
            return loss, d_hidden_TxD, d_unembed_VxD, logits_BxV
        # The token's factor goes into the narrow operands (here, and into d_hidden below): one pass less over each tile.
        scaled_BxD = (hidden_BxD * -weights_B[:, None]).astype(hidden_BxD.dtype)

        def gradients(first, size, carry):
            d_hidden_BxD, d_unembed_VxD = carry
            logits_BxW = lax.dynamic_slice_in_dim(logits_BxV, first, size, 1)
            slope_BxW = onehot_minus_softmax(logits_BxW, logsumexp_B, columns_B - first).astype(unembed.dtype)
            d_hidden_BxD += dot(slope_BxW, lax.dynamic_slice_in_dim(unembed, first, size, 1), (1, 1))
            # Transposed, [V, D]: XLA's CPU product into the other layout runs at half the speed.
            d_unembed_WxD = lax.dynamic_slice_in_dim(d_unembed_VxD, first, size)
            d_unembed_WxD = d_unembed_WxD + dot(slope_BxW, scaled_BxD, (0, 0))
            return d_hidden_BxD, lax.dynamic_update_slice_in_dim(d_unembed_VxD, d_unembed_WxD, first, 0)

        d_hidden_BxD, d_unembed_VxD = over_blocks(
            vocab, tile, gradients, (jnp.zeros((block, width), jnp.float32), d_unembed_VxD)
        )
        d_hidden_BxD *= -weights_B[:, None]
        d_hidden_TxD = lax.dynamic_update_slice_in_dim(d_hidden_TxD, d_hidden_BxD, i * block, 0)
        return loss, d_hidden_TxD, d_unembed_VxD, logits_BxV

    shapes = (weighted.hidden.shape, (vocab, width), (block, vocab)) if differentiate else ()
    start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes) or (None,) * 3
    loss, d_hidden_TxD, d_unembed_VxD, _ = lax.fori_loop(
        0, weighted.trips, over_tokens, (jnp.float32(0), *start)
    )
    if layout.token_axes:
        loss = lax.psum(loss, layout.token_axes)
    if not differentiate:
        return (loss,)
    if layout.vocab_axis is not None:
        d_hidden_TxD = lax.psum(d_hidden_TxD, layout.vocab_axis)
    # Back to the callers' order, without the padding.
    d_hidden_TxD = d_hidden_TxD[weighted.rank[:tokens]].astype(hidden.dtype)
    return loss, d_hidden_TxD, sum_over_tokens(d_unembed_VxD.T, layout).astype(unembed.dtype)


def _by_vocabulary(hidden, unembed, weighted: _Weighted, layout: Layout) -> tuple[Array, ...]:
    """Gradients by blocks of the vocabulary, each of which the devices sum and divide at once: a fourth product with the
    vocabulary, and in place of the whole unembedding's gradient in float32 one block of it."""
    (tokens, width), vocab, block = hidden.shape, unembed.shape[1], weighted.block
    tile = scattered_block(vocab_block(block, vocab), vocab, layout)

    def over_tokens(i, carry):
        loss, logsumexp_T = carry
        hidden_BxD, columns_B, weights_B = weighted.at(i)

        def statistics(first, size, part):
            logits_BxW = dot(hidden_BxD, lax.dynamic_slice_in_dim(unembed, first, size, 1), (1, 0))
            return merge(part, summarise(logits_BxW, columns_B - first))

        part = over_blocks(vocab, tile, statistics, empty(block))
        logprob_B, _, logsumexp_B = finish(across_shards(part, layout.vocab_axis))
        loss -= jnp.sum(jnp.where(weights_B != 0, weights_B * logprob_B, 0))
        return loss, lax.dynamic_update_slice_in_dim(logsumexp_T, logsumexp_B, i * block, 0)

    start = jnp.float32(0), jnp.zeros(weighted.order.shape, jnp.float32)
    loss, logsumexp_T = lax.fori_loop(0, weighted.trips, over_tokens, start)

    def over_vocab(first, size, carry):
        d_hidden_TxD, d_unembed_DxV = carry
        unembed_DxW = lax.dynamic_slice_in_dim(unembed, first, size, 1)

        def gradients(i, carry):
            d_hidden_TxD, d_unembed_WxD = carry
            hidden_BxD, columns_B, weights_B = weighted.at(i)
            logsumexp_B = lax.dynamic_slice_in_dim(logsumexp_T, i * block, block)
            logits_BxW = dot(hidden_BxD, unembed_DxW, (1, 0))
            slope_BxW = onehot_minus_softmax(logits_BxW, logsumexp_B, columns_B - first).astype(unembed.dtype)
            d_hidden_BxD = lax.dynamic_slice_in_dim(d_hidden_TxD, i * block, block)
            d_hidden_BxD = d_hidden_BxD + dot(slope_BxW, unembed_DxW, (1, 1))
            scaled_BxD = (hidden_BxD * -weights_B[:, None]).astype(hidden_BxD.dtype)
            d_hidden_TxD = lax.dynamic_update_slice_in_dim(d_hidden_TxD, d_hidden_BxD, i * block, 0)
            return d_hidden_TxD, d_unembed_WxD + dot(slope_BxW, scaled_BxD, (0, 0))

        zeros_WxD = jnp.zeros((size, width), jnp.float32)
        carry = lax.fori_loop(0, weighted.trips, gradients, (d_hidden_TxD, zeros_WxD))
        return carry[0], write_block(d_unembed_DxV, carry[1], first, layout)

    start = jnp.zeros(weighted.hidden.shape, jnp.float32), empty_gradient(unembed, layout)
    d_hidden_TxD, d_unembed_DxV = over_blocks(vocab, tile, over_vocab, start)
    d_hidden_TxD *= -weighted.weights[weighted.order][:, None]
    if layout.token_axes:
        loss = lax.psum(loss, layout.token_axes)
    if layout.vocab_axis is not None:
        d_hidden_TxD = lax.psum(d_hidden_TxD, layout.vocab_axis)
    return loss, d_hidden_TxD[weighted.rank[:tokens]].astype(hidden.dtype), d_unembed_DxV
