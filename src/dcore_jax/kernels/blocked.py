"""Log-probabilities and entropy in plain JAX, tile by tile, on CPU, GPU and TPU: the logits of one tile exist at a time.

Local arithmetic only: under a mesh `mesh_axes.on_shards` calls these functions on each device's shard, and `vocab_axis` then
names the mesh axis over which the vocabulary is split.

Shape letters: T tokens of this device, B tokens of a tile, D width, V vocabulary columns of this device, W columns of a tile.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dcore_jax.kernels.tiles import (
    Softmax,
    dot,
    empty,
    finish,
    merge,
    over_blocks,
    rescale,
    summarise,
    token_block,
    vocab_block,
)


def forward(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    temperature: Float[Array, ""],
    vocab_axis: str | None = None,
) -> tuple[Float[Array, " tokens"], Float[Array, " tokens"], Float[Array, " tokens"]]:
    """(logprobs, entropy, logsumexp), each [T] float32, by online softmax over vocabulary blocks (arXiv 1805.02867)."""
    tokens, vocab = hidden.shape[0], unembed.shape[1]
    columns_T = local_columns(targets, vocab, vocab_axis)

    def over_tokens(start, size, whole: Softmax) -> Softmax:
        hidden_BxD = lax.dynamic_slice_in_dim(hidden, start, size)
        columns_B = lax.dynamic_slice_in_dim(columns_T, start, size)

        def over_vocab(first, width, part: Softmax) -> Softmax:
            unembed_DxW = lax.dynamic_slice_in_dim(unembed, first, width, 1)
            logits_BxW = dot(hidden_BxD, unembed_DxW, (1, 0)) / temperature
            return merge(part, summarise(logits_BxW, columns_B - first))

        part = over_blocks(vocab, vocab_block(size, vocab), over_vocab, empty(size))
        return Softmax(*(lax.dynamic_update_slice_in_dim(w, p, start, 0) for w, p in zip(whole, part)))

    whole = over_blocks(tokens, token_block(tokens), over_tokens, empty(tokens))
    return finish(across_shards(whole, vocab_axis))


def backward(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    temperature: Float[Array, ""],
    logsumexp: Float[Array, " tokens"],
    cotangent: Float[Array, " tokens"],
    vocab_axis: str | None = None,
    slope_of: Callable[..., Float[Array, "tokens block"]] | None = None,
) -> tuple[Float[Array, "tokens width"], Float[Array, "width vocab"]]:
    """Gradients of `sum cotangent * logprobs`, float32, recomputing each tile's logits.

    `d logits = cotangent / temperature * (onehot - softmax)`, where `onehot - softmax` is called the slope.

    Args:
      slope_of: computes the slope of a tile; by default `slope_of_tile`, in plain JAX.

    Returns:
      d_hidden [T, D] over the whole vocabulary, d_unembed [D, V] of the local tokens.
    """
    slope_of = slope_of or slope_of_tile
    (tokens, width), vocab = hidden.shape, unembed.shape[1]
    columns_T = local_columns(targets, vocab, vocab_axis)
    scale_Tx1 = (cotangent / temperature)[:, None]
    # The token's factor goes into the [T, D] operands, not into the tiles: one pass less over each of them.
    scaled_TxD = (hidden * scale_Tx1).astype(hidden.dtype)

    # The vocabulary is the outer loop, so that each block of the unembedding's gradient, the larger of the two, is written once.
    def over_vocab(first, size, grads):
        d_hidden_TxD, d_unembed_VxD = grads
        unembed_DxW = lax.dynamic_slice_in_dim(unembed, first, size, 1)

        def over_tokens(start, rows, carry):
            d_hidden_TxD, d_unembed_WxD = carry
            hidden_BxD, scaled_BxD, logsumexp_B, columns_B = (
                lax.dynamic_slice_in_dim(x, start, rows) for x in (hidden, scaled_TxD, logsumexp, columns_T)
            )
            slope_BxW = slope_of(hidden_BxD, unembed_DxW, temperature, logsumexp_B, columns_B - first)
            d_hidden_BxD = lax.dynamic_slice_in_dim(d_hidden_TxD, start, rows)
            d_hidden_BxD = d_hidden_BxD + dot(slope_BxW, unembed_DxW, (1, 1))
            d_hidden_TxD = lax.dynamic_update_slice_in_dim(d_hidden_TxD, d_hidden_BxD, start, 0)
            # Transposed, [V, D]: XLA's CPU product into the other layout runs at half the speed.
            return d_hidden_TxD, d_unembed_WxD + dot(slope_BxW, scaled_BxD, (0, 0))

        zeros_WxD = jnp.zeros((size, width), jnp.float32)
        d_hidden_TxD, d_unembed_WxD = over_blocks(
            tokens, token_block(tokens), over_tokens, (d_hidden_TxD, zeros_WxD)
        )
        return d_hidden_TxD, lax.dynamic_update_slice_in_dim(d_unembed_VxD, d_unembed_WxD, first, 0)

    zeros = jnp.zeros((tokens, width), jnp.float32), jnp.zeros((vocab, width), jnp.float32)
    d_hidden_TxD, d_unembed_VxD = over_blocks(vocab, vocab_block(tokens, vocab), over_vocab, zeros)
    d_hidden_TxD = d_hidden_TxD * scale_Tx1
    if vocab_axis is not None:
        d_hidden_TxD = lax.psum(d_hidden_TxD, vocab_axis)
    return d_hidden_TxD, d_unembed_VxD.T


def slope_of_tile(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width block"],
    temperature: Float[Array, ""],
    logsumexp: Float[Array, " tokens"],
    columns: Int[Array, " tokens"],
) -> Float[Array, "tokens block"]:
    """The slope `onehot - softmax` [B, W] of one tile, in the unembedding's dtype."""
    logits_BxW = dot(hidden, unembed, (1, 0)) / temperature
    return onehot_minus_softmax(logits_BxW, logsumexp, columns).astype(unembed.dtype)


def onehot_minus_softmax(
    logits: Float[Array, "tokens block"], logsumexp: Float[Array, " tokens"], columns: Int[Array, " tokens"]
) -> Float[Array, "tokens block"]:
    """`d logprob / d logits` of one tile; `columns` are the targets relative to the tile's first column."""
    onehot = columns[:, None] == jnp.arange(logits.shape[1], dtype=columns.dtype)
    return onehot - jnp.exp(logits - logsumexp[:, None])


def local_columns(
    targets: Int[Array, " tokens"], vocab: int, vocab_axis: str | None
) -> Int[Array, " tokens"]:
    """Targets relative to the first column of this device's part of the vocabulary."""
    return targets if vocab_axis is None else targets - lax.axis_index(vocab_axis) * vocab


def across_shards(part: Softmax, vocab_axis: str | None) -> Softmax:
    """Statistics of the whole vocabulary, from those of the shards along a mesh axis."""
    if vocab_axis is None:
        return part
    part = rescale(part, lax.pmax(part.maximum, vocab_axis))
    return part._replace(
        total=lax.psum(part.total, vocab_axis),
        moment=lax.psum(part.moment, vocab_axis),
        target=lax.psum(part.target, vocab_axis),
    )
