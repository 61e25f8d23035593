"""Block-sparse attention in plain XLA, forward and backward: key blocks that are masked for a whole query block are skipped.

The online softmax of arXiv 1805.02867 and the backward pass of arXiv 2205.14135 (FlashAttention), as loops whose bounds depend on
the segments: a packed row costs as much as its segments, not as its length, and the scores of one pair of blocks exist at a time.
Where continuations share a prefix, the blocks between the prefix and a continuation are skipped too.

Shape letters: n blocks of T tokens, B rows, S length, H query heads, K key heads, G query heads per key head, C head_dim; q the
G * T queries of a block, L the T keys of a block. Queries have the shape [n, B, K, G * T, C], so that all queries of a key head
are in one product with it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

# Below every score, and finite, so that the difference of two of them is not NaN.
_LOWEST = np.float32(-1e30)
_NO_SEGMENT = -1
SAVED_NAME = "attention"  # of what a rematerialisation policy may save


class _Blocks(NamedTuple):
    """The mask by blocks."""

    segment_ids: Int[Array, "n B T"]
    branches: Int[Array, "n B T"] | None
    visits: "_Visits"


class _Visits(NamedTuple):
    """The key blocks of each query block that are not fully masked, its own one last."""

    first: Int[Array, " n"]
    number: Int[Array, " n"]  # of them: from `first` on, or of `order`
    order: Int[Array, "n n"] | None  # None: one after the other


def blocked_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    branches: Int[Array, "batch length"] | None = None,
    *,
    block: int,
) -> Float[Array, "batch length heads head_dim"]:
    """Causal softmax attention within segments (runs of equal ids), scaled by `head_dim ** -0.5`; softmax in float32.

    Args:
      branches: as in `models.attention.attend`.
      block: tokens per block; the length is padded to a multiple of it.
    """
    (B, S, H, C), K = q.shape, k.shape[2]
    T = min(block, S)
    n = -(-S // T)
    end = [(0, 0), (0, n * T - S)]
    # In float32 the queries are scaled, which is cheaper. In bf16 that would round once more: the float32 scores are scaled.
    scale = C**-0.5
    if q.dtype == jnp.float32:
        q, scale = q * np.float32(scale), 1.0
    ids = jnp.pad(segment_ids, end, constant_values=_NO_SEGMENT)
    q, k, v = (jnp.pad(x, [*end, (0, 0), (0, 0)]) for x in (q, k, v))
    keys, values = (x.reshape(B, n, T, K, C).transpose(1, 0, 3, 2, 4) for x in (k, v))
    queries = q.reshape(B, n, T, K, H // K, C).transpose(1, 0, 3, 4, 2, 5).reshape(n, B, K, -1, C)

    def by_block(x):
        return x.reshape(B, n, T).swapaxes(0, 1)

    if branches is None:
        blocks = _Blocks(by_block(ids), None, _visits_of_segments(ids, T))
    else:
        branches = jnp.pad(branches, end)
        blocks = _Blocks(by_block(ids), by_block(branches), _visits_of_branches(ids, branches, T))
    out = _attention(scale, queries, keys, values, blocks).reshape(n, B, K, H // K, T, C)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, n * T, H, C)[:, :S]


def _visits_of_segments(ids: Int[Array, "B S"], T: int) -> _Visits:
    """From the block in which the first of a query block's segments starts, over all rows, to the query block itself."""
    first = _run_starts(ids)[:, ::T].min(0) // T
    return _Visits(first, jnp.arange(len(first)) + 1 - first, None)


def _visits_of_branches(ids: Int[Array, "B S"], branches: Int[Array, "B S"], T: int) -> _Visits:
    """Of those, the ones that hold a token of a shared prefix, and those from the start of the query block's first branch on."""
    first = _run_starts(ids)[:, ::T].min(0) // T
    own = _run_starts(ids, branches)[:, ::T].min(0) // T
    shared = (branches == 0).reshape(len(ids), -1, T).any((0, 2))
    i, j = jnp.arange(len(first))[:, None], jnp.arange(len(first))[None, :]
    visited = (first[:, None] <= j) & (j <= i) & (shared[None, :] | (own[:, None] <= j))
    return _Visits(
        jnp.zeros_like(first), visited.sum(1, dtype=jnp.int32), jnp.argsort(~visited, axis=1, stable=True)
    )


def _run_starts(*ids: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Of each position: where the run of equal ids that it is in starts."""
    changed = sum((x[:, 1:] != x[:, :-1] for x in ids), start=jnp.zeros((), bool))
    starts = jnp.pad(changed, [(0, 0), (1, 0)])
    return lax.cummax(jnp.where(starts, jnp.arange(starts.shape[1], dtype=jnp.int32), 0), axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(scale, queries, keys, values, blocks):
    return _forward(scale, queries, keys, values, blocks)[0]


def _forward(scale, queries, keys, values, blocks):
    n, B, K, GT, C = queries.shape

    def attend_block(_, at):
        i, q, mask = at

        def add_key_block(visit, carry):
            j = _key_block(mask.visits, visit)
            maximum, total, out = carry
            scores = _scores(scale, q, keys[j], mask, blocks, i, j)
            new_maximum = jnp.maximum(maximum, scores.max(-1, keepdims=True))
            weights, rescale = jnp.exp(scores - new_maximum), jnp.exp(maximum - new_maximum)
            out = out * rescale + _product("BKqL,BKLC->BKqC", weights.astype(q.dtype), values[j])
            return new_maximum, total * rescale + weights.sum(-1, keepdims=True), out

        column = (B, K, GT, 1)
        # Keys that are all masked for a query have weight exp(0) = 1 at first; its own block, the last one, has a finite maximum,
        # and rescales them to exactly 0.
        start = (jnp.full(column, _LOWEST), jnp.zeros(column), jnp.zeros((B, K, GT, C)))
        maximum, total, out = _loop(n, mask.visits.number, add_key_block, start)
        return None, ((out / total).astype(q.dtype), maximum + jnp.log(total))

    _, (out, logsumexp) = lax.scan(attend_block, None, (jnp.arange(n), queries, blocks))
    # By this name a rematerialisation policy may keep both, so that the backward pass does not run this loop again.
    out, logsumexp = (checkpoint_name(x, SAVED_NAME) for x in (out, logsumexp))
    return out, (queries, keys, values, blocks, out, logsumexp)


def _backward(scale, residuals, d_out):
    """`d_scores = scale * weights * (d_out . value - d_out . out)`; the weights are recomputed from logsumexp."""
    queries, keys, values, blocks, out, logsumexp = residuals
    d_dot_out = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)

    def differentiate_block(carry, at):
        i, q, mask, d, logsumexp, d_dot_out = at

        def add_key_block(visit, carry):
            j = _key_block(mask.visits, visit)
            d_q, d_keys, d_values = carry
            weights = jnp.exp(_scores(scale, q, keys[j], mask, blocks, i, j) - logsumexp)
            d_weights = _product("BKqC,BKLC->BKqL", d, values[j])
            d_scores = weights * (d_weights - d_dot_out)
            d_scores = (d_scores if scale == 1 else scale * d_scores).astype(q.dtype)
            d_q += _product("BKqL,BKLC->BKqC", d_scores, keys[j])
            d_keys = d_keys.at[j].add(_product("BKqL,BKqC->BKLC", d_scores, q))
            d_values = d_values.at[j].add(_product("BKqL,BKqC->BKLC", weights.astype(q.dtype), d))
            return d_q, d_keys, d_values

        zero = jnp.zeros(q.shape, jnp.float32)
        d_q, *carry = _loop(keys.shape[0], mask.visits.number, add_key_block, (zero, *carry))
        return tuple(carry), d_q.astype(q.dtype)

    zeros = jnp.zeros(keys.shape, jnp.float32)
    (d_keys, d_values), d_queries = lax.scan(
        differentiate_block,
        (zeros, zeros),
        (jnp.arange(keys.shape[0]), queries, blocks, d_out, logsumexp, d_dot_out),
    )
    return d_queries, d_keys.astype(keys.dtype), d_values.astype(values.dtype), None


_attention.defvjp(_forward, _backward)


def _key_block(visits: _Visits, visit):
    """The number of a query block's key block."""
    return visits.first + visit if visits.order is None else visits.order[visit]


def _loop(blocks: int, count, body, carry):
    """`lax.fori_loop`; the body alone where there is one block, so that XLA may fuse it with what is around it."""
    return body(0, carry) if blocks == 1 else lax.fori_loop(0, count, body, carry)


def _scores(scale, q_BxKxGTxC, k_BxKxTxC, query, blocks, i, j):
    """Scores of query block i and key block j, [B, K, G * T, T] float32; masked ones are _LOWEST."""
    scores = _product("BKqC,BKLC->BKqL", q_BxKxGTxC, k_BxKxTxC)
    scores = scores if scale == 1 else scale * scores
    B, K, GT, T = scores.shape
    index = jnp.arange(T)
    visible = query.segment_ids[:, :, None] == blocks.segment_ids[j][:, None, :]
    visible &= index[None, :] + j * T <= index[:, None] + i * T
    if query.branches is not None:
        keys = blocks.branches[j][:, None, :]
        visible &= (keys == 0) | (keys == query.branches[:, :, None])
    return jnp.where(visible[:, None, None], scores.reshape(B, K, -1, T, T), _LOWEST).reshape(B, K, GT, T)


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)
