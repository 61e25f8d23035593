"""Blocks of the vocabulary in plain JAX: CPU, GPU and TPU. The logits of one tile exist at a time.

Local arithmetic only: under a mesh `mesh_axes.on_shards` calls these on each device's shard, and `vocab_axis` then names
the mesh axis over which the vocabulary is split.
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
    """(logprobs, entropy, logsumexp), each [tokens] float32, by online softmax over vocabulary blocks."""
    tokens, vocab = hidden.shape[0], unembed.shape[1]
    targets = local_columns(targets, vocab, vocab_axis)

    def over_tokens(start, size, whole: Softmax) -> Softmax:
        rows = lax.dynamic_slice_in_dim(hidden, start, size)
        columns = lax.dynamic_slice_in_dim(targets, start, size)

        def over_vocab(first, width, part: Softmax) -> Softmax:
            logits = dot(rows, lax.dynamic_slice_in_dim(unembed, first, width, 1), (1, 0)) / temperature
            return merge(part, summarise(logits, columns - first))

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
    """Gradients of `sum cotangent * logprobs` (hidden: whole; unembed: of the local tokens), float32.

    Each tile's logits are computed again: `d logits = cotangent / temperature * (onehot - softmax)`.
    The vocabulary is the outer loop, so that each block of the unembedding's gradient is written once.
    slope_of: what computes a tile of `onehot - softmax`; `slope_of_tile` unless a kernel does it.
    """
    slope_of = slope_of or slope_of_tile
    (tokens, width), vocab = hidden.shape, unembed.shape[1]
    targets = local_columns(targets, vocab, vocab_axis)
    scale = (cotangent / temperature)[:, None]
    # The token's factor goes into the [tokens, width] operands: one pass less over each tile.
    scaled = (hidden * scale).astype(hidden.dtype)

    def over_vocab(first, size, grads):
        d_hidden, d_unembed = grads
        block = lax.dynamic_slice_in_dim(unembed, first, size, 1)

        def over_tokens(start, rows, carry):
            d_hidden, d_block = carry
            state, factor, lse, columns = (
                lax.dynamic_slice_in_dim(x, start, rows) for x in (hidden, scaled, logsumexp, targets)
            )
            slope = slope_of(state, block, temperature, lse, columns - first)
            old = lax.dynamic_slice_in_dim(d_hidden, start, rows)
            d_hidden = lax.dynamic_update_slice_in_dim(d_hidden, old + dot(slope, block, (1, 1)), start, 0)
            # [vocab, width]: XLA's CPU product into the other layout runs at half the speed.
            return d_hidden, d_block + dot(slope, factor, (0, 0))

        zeros = jnp.zeros((size, width), jnp.float32)
        d_hidden, d_block = over_blocks(tokens, token_block(tokens), over_tokens, (d_hidden, zeros))
        return d_hidden, lax.dynamic_update_slice_in_dim(d_unembed, d_block, first, 0)

    zeros = jnp.zeros((tokens, width), jnp.float32), jnp.zeros((vocab, width), jnp.float32)
    d_hidden, d_unembed = over_blocks(vocab, vocab_block(tokens, vocab), over_vocab, zeros)
    d_hidden = d_hidden * scale
    if vocab_axis is not None:
        d_hidden = lax.psum(d_hidden, vocab_axis)
    return d_hidden, d_unembed.T


def slope_of_tile(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width block"],
    temperature: Float[Array, ""],
    logsumexp: Float[Array, " tokens"],
    columns: Int[Array, " tokens"],
) -> Float[Array, "tokens block"]:
    """`onehot - softmax` of one tile, in the unembedding's dtype."""
    logits = dot(hidden, unembed, (1, 0)) / temperature
    return onehot_minus_softmax(logits, logsumexp, columns).astype(unembed.dtype)


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
    """Statistics of the whole vocabulary, from the parts that lie along a mesh axis."""
    if vocab_axis is None:
        return part
    part = rescale(part, lax.pmax(part.maximum, vocab_axis))
    return part._replace(
        total=lax.psum(part.total, vocab_axis),
        moment=lax.psum(part.moment, vocab_axis),
        target=lax.psum(part.target, vocab_axis),
    )
