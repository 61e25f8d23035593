"""Log-probabilities and entropy in plain JAX, tile by tile, on CPU, GPU and TPU: the logits of one tile exist at a time.

Local arithmetic only: under a mesh `mesh_axes.on_shards` calls these functions on each device's shard, and `vocab_axis` then
names the mesh axis over which the vocabulary is split.

Shape letters: T tokens of this device, B tokens of a tile, D width, V vocabulary columns of this device, W columns of a tile.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dcore_jax.kernels.mesh_axes import Layout, sum_over_tokens
from dcore_jax.kernels.tiles import (
    LANES,
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

# The least number of blocks in which a gradient is scattered over devices: one block is in memory in float32, twice.
_SCATTERED_BLOCKS = 16


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
    layout: Layout = Layout(),  # noqa: B008  (a NamedTuple)
    slope_of: Callable[..., Float[Array, "tokens block"]] | None = None,
) -> tuple[Float[Array, "tokens width"], Float[Array, "_ vocab"]]:
    """Gradients of `sum cotangent * logprobs`, recomputing each tile's logits.

    `d logits = cotangent / temperature * (onehot - softmax)`, where `onehot - softmax` is called the slope.

    Args:
      slope_of: computes the slope of a tile; by default `slope_of_tile`, in plain JAX.

    Returns:
      d_hidden [T, D] float32, and d_unembed in the unembedding's dtype, of all tokens and split as `layout.d_unembed` says.
    """
    slope_of = slope_of or slope_of_tile
    (tokens, width), vocab = hidden.shape, unembed.shape[1]
    columns_T = local_columns(targets, vocab, layout.vocab_axis)
    scale_Tx1 = (cotangent / temperature)[:, None]
    # The token's factor goes into the [T, D] operands, not into the tiles: one pass less over each of them.
    scaled_TxD = (hidden * scale_Tx1).astype(hidden.dtype)

    # The vocabulary is the outer loop: each block of the unembedding's gradient, the larger of the two, is summed over the
    # devices and written once, in its last layout and dtype. In float32 only a block exists.
    def over_vocab(first, size, grads):
        d_hidden_TxD, d_unembed_DxV = grads
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
        return d_hidden_TxD, write_block(d_unembed_DxV, d_unembed_WxD, first, layout)

    start = jnp.zeros((tokens, width), jnp.float32), empty_gradient(unembed, layout)
    block = scattered_block(vocab_block(tokens, vocab), vocab, layout)
    d_hidden_TxD, d_unembed_DxV = over_blocks(vocab, block, over_vocab, start)
    d_hidden_TxD = d_hidden_TxD * scale_Tx1
    if layout.vocab_axis is not None:
        d_hidden_TxD = lax.psum(d_hidden_TxD, layout.vocab_axis)
    return d_hidden_TxD, d_unembed_DxV


def empty_gradient(unembed: Float[Array, "width vocab"], layout: Layout) -> Float[Array, "_ vocab"]:
    """Zeros for this device's part of the unembedding's gradient."""
    width, vocab = unembed.shape
    return jnp.zeros((width // layout.width_shards, vocab), unembed.dtype)


def write_block(
    gradient: Float[Array, "_ vocab"], block: Float[Array, "block width"], first: Array | int, layout: Layout
) -> Float[Array, "_ vocab"]:
    """The gradient with one block of columns, given transposed of the local tokens: summed, and cut to this device's width."""
    summed = sum_over_tokens(block.T, layout).astype(gradient.dtype)
    return lax.dynamic_update_slice_in_dim(gradient, summed, first, 1)


def scattered_block(block: int, vocab: int, layout: Layout) -> int:
    """Columns of a block of the vocabulary; where its gradient is scattered, at most a sixteenth of them all, for its memory."""
    if layout.width_axis is None:
        return block
    return min(block, -(-vocab // (_SCATTERED_BLOCKS * LANES)) * LANES)


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
