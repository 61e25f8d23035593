"""The KV cache: a pair of arrays per layer, one row per slot, written in place.

Keys are kept transposed, so that scores of one query over all positions are sums over full vectors. Shape letters: R slots, P rows
of a prefill, K key/value heads, G query heads per key/value head, C head_dim, T positions, S positions of a prefill.

Under a mesh slots are split over ("data", "fsdp") and heads over "tensor"; every device works on its own, without a collective.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dcore_jax.mesh import BATCH_AXES
from dcore_jax.models import ModelConfig

_HEADS = P(BATCH_AXES, None, "tensor", None)  # of queries, keys and values as the decoder hands them over
_CACHE = P(BATCH_AXES, "tensor", None, None)
_ROWS = P(BATCH_AXES)


class LayerCache(NamedTuple):
    keys: Float[Array, "rows kv_heads head_dim positions"]
    values: Float[Array, "rows kv_heads positions head_dim"]


Cache = tuple[LayerCache, ...]  # one per layer


def zeros(config: ModelConfig, rows: int, positions: int, dtype: Any) -> Cache:
    """An empty cache for `rows` sequences of at most `positions` tokens. Call under `jit`."""
    layer = LayerCache(
        jnp.zeros((rows, config.num_kv_heads, config.head_dim, positions), dtype),
        jnp.zeros((rows, config.num_kv_heads, positions, config.head_dim), dtype),
    )
    return tuple(LayerCache(*map(constrain_cache, layer)) for _ in range(config.num_layers))


def constrain_cache(x: Array) -> Array:
    """Pins one array of a cache to the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, _CACHE)


def resize(cache: Cache, positions: int) -> Cache:
    """The same cache with room for `positions` tokens: zeros appended, or the last positions cut off. A copy."""

    def fit(x, axis):
        have = x.shape[axis]
        if positions <= have:
            return jax.lax.slice_in_dim(x, 0, positions, axis=axis)
        return jnp.pad(x, [(0, positions - have if i == axis else 0) for i in range(x.ndim)])

    return tuple(LayerCache(constrain_cache(fit(k, 3)), constrain_cache(fit(v, 2))) for k, v in cache)


def as_cache_layout(
    k: Float[Array, "rows length kv_heads head_dim"], v: Float[Array, "rows length kv_heads head_dim"]
) -> LayerCache:
    """Keys and values of a prefill, in the layout of the cache."""
    return LayerCache(jnp.transpose(k, (0, 2, 3, 1)), jnp.transpose(v, (0, 2, 1, 3)))


def insert(
    cache: Cache, prefilled: Cache, rows: Int[Array, " n"], slots: Int[Array, " n"], count: Int[Array, ""]
) -> Cache:
    """Copies row `rows[i]` of a prefill to slot `slots[i]` for the first `count` i; positions after the prefill's stay."""

    def local(cache, prefilled, rows, slots, count):
        here = cache[0].keys.shape[0]
        first = _shard_index() * here

        def one(i, cache):
            slot = slots[i] - first
            mine = (slot >= 0) & (slot < here)
            at = (jnp.clip(slot, 0, here - 1), 0, 0, 0)

            def put(whole, part):
                part = jax.lax.dynamic_slice_in_dim(part, rows[i], 1)
                part = jnp.where(mine, part, jax.lax.dynamic_slice(whole, at, part.shape))
                return jax.lax.dynamic_update_slice(whole, part, at)

            return jax.tree.map(put, cache, prefilled)

        return jax.lax.fori_loop(0, count, one, cache)

    replicated_rows = P(None, "tensor", None, None)  # every device needs the rows of every prompt
    specs = (_CACHE, replicated_rows, P(), P(), P())
    return _on_shards(local, specs, _CACHE)(cache, prefilled, rows, slots, count)


def attend_to_cache(
    q: Float[Array, "rows 1 heads head_dim"],
    k: Float[Array, "rows 1 kv_heads head_dim"],
    v: Float[Array, "rows 1 kv_heads head_dim"],
    positions: Int[Array, " rows"],
    writes: Int[Array, " rows"],
    cache: LayerCache,
) -> tuple[Float[Array, "rows 1 heads head_dim"], LayerCache]:
    """Writes the new token's key and value at `writes` (dropped where out of range) and attends to positions 0 ... `positions`.

    Softmax in float32, scores scaled by `head_dim ** -0.5`. Masked positions add exact zeros, so a row's result does not depend on
    how much room the cache has.
    """

    def local(q, k, v, positions, writes, keys, values):
        R, _, H, C = q.shape
        K, T = keys.shape[1], keys.shape[3]
        row = jnp.arange(R)
        keys = keys.at[row, :, :, writes].set(k[:, 0], mode="drop", unique_indices=True)
        values = values.at[row, :, writes].set(v[:, 0], mode="drop", unique_indices=True)
        q = q.reshape(R, K, H // K, C)
        scores = jnp.einsum("rkgc,rkct->rkgt", q, keys, preferred_element_type=jnp.float32) * C**-0.5
        seen = jnp.arange(T) <= positions[:, None]
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        out = jnp.einsum(
            "rkgt,rktc->rkgc", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
        )
        out = (out / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)
        return out.reshape(R, 1, H, C), keys, values

    specs = (_HEADS, _HEADS, _HEADS, _ROWS, _ROWS, _CACHE, _CACHE)
    out, keys, values = _on_shards(local, specs, (_HEADS, _CACHE, _CACHE))(q, k, v, positions, writes, *cache)
    return out, LayerCache(keys, values)


def _on_shards(local, in_specs, out_specs):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _shard_index() -> Array | int:
    """Which of the row shards this device holds, inside `_on_shards`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 0 if mesh.empty or mesh.size == 1 else jax.lax.axis_index(BATCH_AXES)
