"""The KV cache: blocks of positions per layer, one row per slot, written in place.

A cache that holds T positions is a tuple of blocks (64, 64, 64, 64, 128, 128, 256, ... positions): it grows by another block,
without a copy. All arithmetic has the shape of a block, so that a row's bits do not depend on how much room its batch mates
need: operations on all T positions at once are compiled differently for every T, and round differently.

Keys are kept transposed, so that scores of one query over all positions are sums over full vectors. Shape letters: R slots, K
key/value heads, G query heads per key/value head, C head_dim, T positions of a block.

Under a mesh slots are split over ("data", "fsdp") and heads over "tensor"; every device works on its own, without a collective.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dcore_jax.mesh import BATCH_AXES
from dcore_jax.models import ModelConfig

_FIRST_BLOCK = 64
_HEADS = P(BATCH_AXES, None, "tensor", None)  # of queries, keys and values as the decoder hands them over
_CACHE = P(BATCH_AXES, "tensor", None, None)
_ROWS = P(BATCH_AXES)


class LayerCache(NamedTuple):
    keys: tuple[Float[Array, "rows kv_heads head_dim positions"], ...]  # a block each
    values: tuple[Float[Array, "rows kv_heads positions head_dim"], ...]


Cache = tuple[LayerCache, ...]  # one per layer


def block_sizes(positions: int) -> list[int]:
    """Sizes of the fewest blocks that hold `positions`; their sums are 64, 128, 192, 256, 384, 512, 768, 1024, ..."""
    sizes = [_FIRST_BLOCK]
    while (total := sum(sizes)) < positions:
        power_of_two = total & (total - 1) == 0
        sizes.append(max(_FIRST_BLOCK, total // 2) if power_of_two else total // 3)
    return sizes


def bucket(positions: int) -> int:
    """The room of the smallest cache that holds `positions`."""
    return sum(block_sizes(positions))


def room(cache: Cache) -> int:
    """Positions that a cache holds."""
    return sum(block.shape[3] for block in cache[0].keys)


def zeros(config: ModelConfig, rows: int, sizes: tuple[int, ...], dtype: Any) -> Cache:
    """Empty blocks of these sizes for every layer. Call under `jit`."""
    K, C = config.num_kv_heads, config.head_dim
    return tuple(
        LayerCache(
            tuple(constrain_cache(jnp.zeros((rows, K, C, size), dtype)) for size in sizes),
            tuple(constrain_cache(jnp.zeros((rows, K, size, C), dtype)) for size in sizes),
        )
        for _ in range(config.num_layers)
    )


def constrain_cache(x: Array) -> Array:
    """Pins a block to the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, _CACHE)


def replicated(x: Array) -> Array:
    """The same array, whole on every device of the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, P())


def first_blocks(cache: Cache, count: int) -> Cache:
    """The cache of the first `count` blocks."""
    return tuple(LayerCache(layer.keys[:count], layer.values[:count]) for layer in cache)


def joined(cache: Cache, more: Cache) -> Cache:
    """The cache with more blocks at its end."""
    return tuple(LayerCache(a.keys + b.keys, a.values + b.values) for a, b in zip(cache, more, strict=True))


def after_blocks(cache: Cache, count: int) -> Cache:
    """The cache without its first `count` blocks."""
    return tuple(LayerCache(layer.keys[count:], layer.values[count:]) for layer in cache)


def as_blocks(
    k: Float[Array, "rows length kv_heads head_dim"], v: Float[Array, "rows length kv_heads head_dim"]
) -> LayerCache:
    """Keys and values of a prefill, whose length is a `bucket`, in the layout of the cache."""
    keys, values = [], []
    start = 0
    for size in block_sizes(k.shape[1]):
        keys.append(jnp.transpose(k[:, start : start + size], (0, 2, 3, 1)))
        values.append(jnp.transpose(v[:, start : start + size], (0, 2, 1, 3)))
        start += size
    return LayerCache(tuple(keys), tuple(values))


def insert(
    cache: Cache, prefilled: Cache, rows: Int[Array, " n"], slots: Int[Array, " n"], count: Int[Array, ""]
) -> Cache:
    """Copies row `rows[i]` of a prefill to slot `slots[i]` for the first `count` i; both caches have the same blocks."""

    def local(cache, prefilled, rows, slots, count):
        here = cache[0].keys[0].shape[0]
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

    Softmax in float32, scores scaled by `head_dim ** -0.5`. Positions that are masked add exact zeros.
    """
    specs = (_HEADS, _HEADS, _HEADS, _ROWS, _ROWS, _CACHE, _CACHE)
    out, keys, values = _on_shards(_attend, specs, (_HEADS, _CACHE, _CACHE))(
        q, k, v, positions, writes, *cache
    )
    return out, LayerCache(keys, values)


def _attend(q, k, v, positions, writes, keys, values):
    R, _, H, C = q.shape
    K = k.shape[2]
    query = q.reshape(R, K, H // K, C)
    row = jnp.arange(R)
    new_keys, new_values, scores = [], [], []
    start = 0
    for key_block, value_block in zip(keys, values, strict=True):
        T = key_block.shape[3]
        at = jnp.where((writes >= start) & (writes < start + T), writes - start, T)
        key_block = key_block.at[row, :, :, at].set(k[:, 0], mode="drop", unique_indices=True)
        value_block = value_block.at[row, :, at].set(v[:, 0], mode="drop", unique_indices=True)
        score = jnp.einsum("rkgc,rkct->rkgt", query, key_block, preferred_element_type=jnp.float32)
        seen = start + jnp.arange(T) <= positions[:, None]
        scores.append(jnp.where(seen[:, None, None], score, -jnp.inf))
        new_keys.append(key_block)
        new_values.append(value_block)
        start += T
    peak = scores[0].max(axis=-1, keepdims=True)
    for score in scores[1:]:
        peak = jnp.maximum(peak, score.max(axis=-1, keepdims=True))
    out = jnp.zeros(query.shape, jnp.float32)
    total = jnp.zeros_like(peak)
    for score, value_block in zip(scores, new_values, strict=True):
        weights = jnp.exp((score - peak) * C**-0.5)
        out += jnp.einsum(
            "rkgt,rktc->rkgc",
            weights.astype(value_block.dtype),
            value_block,
            preferred_element_type=jnp.float32,
        )
        total += weights.sum(axis=-1, keepdims=True)
    return (out / total).astype(q.dtype).reshape(R, 1, H, C), tuple(new_keys), tuple(new_values)


def _on_shards(local, in_specs, out_specs):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _shard_index() -> Array | int:
    """Which of the row shards this device holds, inside `_on_shards`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 0 if mesh.empty or mesh.size == 1 else jax.lax.axis_index(BATCH_AXES)
