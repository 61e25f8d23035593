"""The KV cache: blocks of positions per layer, one row per slot, written in place.

A cache is a tuple of blocks of 64, 64, 64, 64, 128, 128, 256, ... positions: it grows by another block, without a copy. All
arithmetic has the shape of a block, so that a row's bits do not depend on the longest sequence of its batch: an operation on all
positions at once would be compiled anew for every length, and would round differently.

Keys are kept transposed, so that the scores of one query over all positions are sums over full vectors.

Under a mesh slots are split over ("data", "fsdp") and heads over "tensor"; every device works on its own, without a collective.

Shape letters: R rows (slots), H query heads, K key/value heads, G = H / K query heads per key/value head, C head_dim, T positions
of a block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dcore_jax.mesh import BATCH_AXES
from dcore_jax.models import ModelConfig

_FIRST_BLOCK = 64
_HEADS = P(BATCH_AXES, None, "tensor", None)  # of the decoder's queries, keys and values, [R, 1, heads, C]
_CACHE = P(BATCH_AXES, "tensor", None, None)
_ROWS = P(BATCH_AXES)


class LayerCache(NamedTuple):
    """Keys and values of one layer, as tuples of blocks."""

    keys: tuple[Float[Array, "rows kv_heads head_dim positions"], ...]
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
    """Capacity of the smallest cache that holds `positions`: the length to which prompts are padded."""
    return sum(block_sizes(positions))


def capacity(cache: Cache) -> int:
    """Number of positions that a cache holds."""
    return sum(block.shape[3] for block in cache[0].keys)


def zeros(config: ModelConfig, rows: int, sizes: tuple[int, ...], dtype: Any) -> Cache:
    """Blocks of zeros, of these sizes, for every layer. Call under `jit`, which puts each block where the mesh wants it."""
    K, C = config.num_kv_heads, config.head_dim
    return tuple(
        LayerCache(
            tuple(constrain_cache(jnp.zeros((rows, K, C, size), dtype)) for size in sizes),
            tuple(constrain_cache(jnp.zeros((rows, K, size, C), dtype)) for size in sizes),
        )
        for _ in range(config.num_layers)
    )


def constrain_cache(x: Array) -> Array:
    """Constrains a block to its sharding on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, _CACHE)


def replicated(x: Array) -> Array:
    """The same array, replicated over the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, P())


def take_blocks(cache: Cache, count: int) -> Cache:
    """The first `count` blocks of every layer."""
    return tuple(LayerCache(layer.keys[:count], layer.values[:count]) for layer in cache)


def append_blocks(cache: Cache, more: Cache) -> Cache:
    """The cache with more blocks at its end."""
    return tuple(LayerCache(a.keys + b.keys, a.values + b.values) for a, b in zip(cache, more, strict=True))


def drop_blocks(cache: Cache, count: int) -> Cache:
    """The cache without its first `count` blocks."""
    return tuple(LayerCache(layer.keys[count:], layer.values[count:]) for layer in cache)


def to_blocks(
    k: Float[Array, "rows length kv_heads head_dim"], v: Float[Array, "rows length kv_heads head_dim"]
) -> LayerCache:
    """Keys and values of a prefill, whose length is a `bucket`, in the cache's layout."""
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
    """Copies row `rows[i]` of a prefill to slot `slots[i]`, for the first `count` of both.

    `count` is traced, so that one program serves any number of copies. Both caches have blocks of the same sizes.
    """

    def local(cache, prefilled, rows, slots, count):
        local_slots = cache[0].keys[0].shape[0]
        first_slot = _shard_index() * local_slots

        def copy_row(i, cache):
            slot = slots[i] - first_slot
            is_local = (slot >= 0) & (slot < local_slots)
            start = (jnp.clip(slot, 0, local_slots - 1), 0, 0, 0)

            def copy_block(block, row):
                row = jax.lax.dynamic_slice_in_dim(row, rows[i], 1)
                # Another device's slot: the update writes back what was there, since it cannot be skipped.
                row = jnp.where(is_local, row, jax.lax.dynamic_slice(block, start, row.shape))
                return jax.lax.dynamic_update_slice(block, row, start)

            return jax.tree.map(copy_block, cache, prefilled)

        return jax.lax.fori_loop(0, count, copy_row, cache)

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
    """Attention of one new token per row to its own key and value and to the cached ones before it.

    Softmax in float32, scores scaled by `head_dim ** -0.5`. Masked positions add exact zeros, whatever they hold.

    Args:
      positions: of the new tokens; each attends to positions 0 to its own.
      writes: positions at which key and value are written; out of the cache's range: not written (an idle slot).

    Returns:
      The output, and the layer's cache with the new keys and values.
    """
    specs = (_HEADS, _HEADS, _HEADS, _ROWS, _ROWS, _CACHE, _CACHE)
    out, keys, values = _on_shards(_attend, specs, (_HEADS, _CACHE, _CACHE))(
        q, k, v, positions, writes, *cache
    )
    return out, LayerCache(keys, values)


def _attend(q, k, v, positions, writes, keys, values):
    R, _, H, C = q.shape
    K = k.shape[2]
    q_RxKxGxC = q.reshape(R, K, H // K, C)
    row = jnp.arange(R)
    new_keys, new_values, scores = [], [], []
    start = 0
    for keys_RxKxCxT, values_RxKxTxC in zip(keys, values, strict=True):
        T = keys_RxKxCxT.shape[3]
        # T, one past the block's end, for rows that write elsewhere: mode="drop" leaves those out.
        at = jnp.where((writes >= start) & (writes < start + T), writes - start, T)
        keys_RxKxCxT = keys_RxKxCxT.at[row, :, :, at].set(k[:, 0], mode="drop", unique_indices=True)
        values_RxKxTxC = values_RxKxTxC.at[row, :, at].set(v[:, 0], mode="drop", unique_indices=True)
        scores_RxKxGxT = jnp.einsum(
            "rkgc,rkct->rkgt", q_RxKxGxC, keys_RxKxCxT, preferred_element_type=jnp.float32
        )
        visible_RxT = start + jnp.arange(T) <= positions[:, None]
        scores.append(jnp.where(visible_RxT[:, None, None], scores_RxKxGxT, -jnp.inf))
        new_keys.append(keys_RxKxCxT)
        new_values.append(values_RxKxTxC)
        start += T
    # One maximum over all blocks first: then every block is weighted once, and a masked block adds exact zeros.
    peak_RxKxGx1 = scores[0].max(axis=-1, keepdims=True)
    for scores_RxKxGxT in scores[1:]:
        peak_RxKxGx1 = jnp.maximum(peak_RxKxGx1, scores_RxKxGxT.max(axis=-1, keepdims=True))
    out_RxKxGxC = jnp.zeros(q_RxKxGxC.shape, jnp.float32)
    total_RxKxGx1 = jnp.zeros_like(peak_RxKxGx1)
    for scores_RxKxGxT, values_RxKxTxC in zip(scores, new_values, strict=True):
        weights_RxKxGxT = jnp.exp((scores_RxKxGxT - peak_RxKxGx1) * C**-0.5)
        out_RxKxGxC += jnp.einsum(
            "rkgt,rktc->rkgc",
            weights_RxKxGxT.astype(values_RxKxTxC.dtype),
            values_RxKxTxC,
            preferred_element_type=jnp.float32,
        )
        total_RxKxGx1 += weights_RxKxGxT.sum(axis=-1, keepdims=True)
    out = (out_RxKxGxC / total_RxKxGx1).astype(q.dtype).reshape(R, 1, H, C)
    return out, tuple(new_keys), tuple(new_values)


def _on_shards(local, in_specs, out_specs):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _shard_index() -> Array | int:
    """Index of this device's shard of the rows, inside `_on_shards`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 0 if mesh.empty or mesh.size == 1 else jax.lax.axis_index(BATCH_AXES)
