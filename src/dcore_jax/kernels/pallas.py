"""Log-probabilities and entropy as Pallas kernels whose logits are never written to memory: one kernel source for GPU and TPU.

A GPU's programs (Triton) run in any order and a TPU's (Mosaic) in sequence, so no program here uses another one's result: each
reduces its own tile, and plain JAX merges the results. Forward: a tile becomes four numbers per token. Backward: a tile becomes
its slope `onehot - softmax`, and XLA multiplies the slopes of one vocabulary block by hidden states and unembedding, as in
`blocked.backward`.

On a CPU the kernels are interpreted: correct and slow, for tests.

Shape letters: T tokens, D width, V vocabulary; B tokens and W columns of a tile, K the part of the width in one product. Tiles
are transposed, [W, B], which puts per-token rows along a TPU's lanes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from dcore_jax.kernels import blocked
from dcore_jax.kernels.mesh_axes import Layout
from dcore_jax.kernels.tiles import LANES, LOWEST, Softmax, dot, finish, rescale
from dcore_jax.target import target_platform


class Tile(NamedTuple):
    """Sizes of one program's tile of logits."""

    tokens: int  # B
    vocab: int  # W
    depth: int  # K: the width is summed in steps of it


_VMEM = 12 * 2**20  # bytes of the 16 MiB that a kernel gets on a TPU unasked; the rest is for its results
# 128 columns divide Qwen's 151,936 (2^7 x 1,187) and Llama's 128,256: more columns would need a padded copy of the unembedding.
# The interpreter (cpu) costs time per tile, so its tiles are large.
TILES = {"cpu": Tile(8, 2048, 32), "gpu": Tile(128, 128, 64), "tpu": Tile(256, 128, 128)}


def forward(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    temperature: Float[Array, ""],
    vocab_axis: str | None = None,
) -> tuple[Float[Array, " tokens"], Float[Array, " tokens"], Float[Array, " tokens"]]:
    """(logprobs, entropy, logsumexp), each [T] float32. Temporary memory: 16 bytes for each token and 128 columns."""
    columns_T = blocked.local_columns(targets, unembed.shape[1], vocab_axis)
    # One statistic per tile and token, [V / W, 1, T]: what `tiles.merge` does step by step is one reduction here.
    parts = Softmax(
        *(x[:, 0] for x in _over_tiles(_summarise_tile, hidden, unembed, (columns_T,), temperature))
    )
    parts = rescale(parts, jnp.max(parts.maximum, axis=0))
    whole = Softmax(parts.maximum, *(jnp.sum(x, axis=0) for x in parts[1:]))
    return finish(blocked.across_shards(whole, vocab_axis))


def backward(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    temperature: Float[Array, ""],
    logsumexp: Float[Array, " tokens"],
    cotangent: Float[Array, " tokens"],
    layout: Layout = Layout(),  # noqa: B008  (a NamedTuple)
) -> tuple[Float[Array, "tokens width"], Float[Array, "_ vocab"]]:
    """As `blocked.backward`, with the slope of each block computed by the kernel."""
    return blocked.backward(
        hidden, unembed, targets, temperature, logsumexp, cotangent, layout, slope_of=slope_of_block
    )


def slope_of_block(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width block"],
    temperature: Float[Array, ""],
    logsumexp: Float[Array, " tokens"],
    columns: Int[Array, " tokens"],
) -> Float[Array, "tokens block"]:
    """The slope `onehot - softmax` of one block of the vocabulary, in the unembedding's dtype."""
    return _over_tiles(_slope_tile, hidden, unembed, (columns, logsumexp), temperature).T


def _logits_tile(hidden_ref, unembed_ref, inverse_ref, *, tile: Tile):
    """Logits [W, B] of this program's tile, times the inverse temperature."""

    def step(k, total_WxB):
        part = pl.ds(pl.multiple_of(k * tile.depth, tile.depth), tile.depth)
        return total_WxB + dot(unembed_ref[part, :], hidden_ref[:, part], (0, 1))

    zeros_WxB = jnp.zeros((tile.vocab, tile.tokens), jnp.float32)
    return lax.fori_loop(0, hidden_ref.shape[1] // tile.depth, step, zeros_WxB) * inverse_ref[...]


def _rows(tile: Tile):
    """The vocabulary column of each row of this program's tile, [W, B]."""
    return lax.broadcasted_iota(jnp.int32, (tile.vocab, tile.tokens), 0) + pl.program_id(1) * tile.vocab


def _summarise_tile(hidden_ref, unembed_ref, inverse_ref, targets_ref, *out_refs, tile: Tile, vocab: int):
    """The four statistics of `tiles.Softmax` of this program's tile, each [1, B]."""
    logits_WxB = _logits_tile(hidden_ref, unembed_ref, inverse_ref, tile=tile)
    rows_WxB = _rows(tile)
    target = jnp.sum(jnp.where(rows_WxB == targets_ref[...], logits_WxB, 0.0), axis=0, keepdims=True)
    if vocab % tile.vocab:
        # Columns of the padding must not count.
        logits_WxB = jnp.where(rows_WxB < vocab, logits_WxB, LOWEST)
    maximum = jnp.max(logits_WxB, axis=0, keepdims=True)
    shifted_WxB = logits_WxB - maximum
    weight_WxB = jnp.exp(shifted_WxB)
    total = jnp.sum(weight_WxB, axis=0, keepdims=True)
    moment = jnp.sum(shifted_WxB * weight_WxB, axis=0, keepdims=True)
    for out_ref, value in zip(out_refs, (maximum, total, moment, target)):
        out_ref[...] = value


def _slope_tile(
    hidden_ref, unembed_ref, inverse_ref, targets_ref, logsumexp_ref, out_ref, *, tile: Tile, vocab: int
):
    """`onehot - softmax` of this program's tile, [W, B]."""
    del vocab  # rows beyond it are cut off by the caller
    logits_WxB = _logits_tile(hidden_ref, unembed_ref, inverse_ref, tile=tile)
    onehot_WxB = (_rows(tile) == targets_ref[...]).astype(jnp.float32)
    out_ref[...] = (onehot_WxB - jnp.exp(logits_WxB - logsumexp_ref[...])).astype(out_ref.dtype)


def _over_tiles(kernel, hidden, unembed, per_token: tuple[Array, ...], temperature) -> Any:
    """Runs `kernel` on every tile of the logits.

    Returns:
      Of `_summarise_tile` four float32 arrays [V / W, 1, T], of `_slope_tile` one array [V, T].
    """
    (tokens, width), vocab = hidden.shape, unembed.shape[1]
    backend = target_backend()
    tile = tile_for(backend, width, unembed.dtype.itemsize)
    inverse = jnp.broadcast_to(1 / temperature, (tokens,))
    rows, depth, columns = -tokens % tile.tokens, -width % tile.depth, -vocab % tile.vocab
    # Padded, since Triton reads past an array's end without an error; a size that the tile divides is not copied.
    hidden = jnp.pad(hidden, ((0, rows), (0, depth))) if rows or depth else hidden
    unembed = jnp.pad(unembed, ((0, depth), (0, columns))) if depth or columns else unembed
    per_token = tuple(jnp.pad(x, (0, rows))[None] for x in (inverse, *per_token))
    grid = (hidden.shape[0] // tile.tokens, unembed.shape[1] // tile.vocab)
    row = pl.BlockSpec((1, tile.tokens), lambda i, j: (0, i))
    if kernel is _summarise_tile:
        statistic = jax.ShapeDtypeStruct((grid[1], 1, hidden.shape[0]), jnp.float32)
        out_shape: Any = (statistic,) * 4
        out_specs: Any = (pl.BlockSpec((None, 1, tile.tokens), lambda i, j: (j, 0, i)),) * 4
    else:
        out_shape = jax.ShapeDtypeStruct((unembed.shape[1], hidden.shape[0]), unembed.dtype)
        out_specs = pl.BlockSpec((tile.vocab, tile.tokens), lambda i, j: (j, i))
    out = pl.pallas_call(
        partial(kernel, tile=tile, vocab=vocab),
        out_shape=out_shape,
        grid=grid,
        in_specs=[
            pl.BlockSpec((tile.tokens, hidden.shape[1]), lambda i, j: (i, 0)),
            pl.BlockSpec((hidden.shape[1], tile.vocab), lambda i, j: (0, j)),
            *(row for _ in per_token),
        ],
        out_specs=out_specs,
        interpret=backend == "cpu",
        compiler_params=_compiler_params(backend, tile, width, unembed.dtype.itemsize),
    )(hidden, unembed, *per_token)
    return tuple(x[..., :tokens] for x in out) if kernel is _summarise_tile else out[:vocab, :tokens]


def target_backend() -> str:
    """`gpu`, `tpu`, or `cpu` for any other backend: there the kernels are interpreted."""
    return platform if (platform := target_platform()) in ("gpu", "tpu") else "cpu"


def tile_for(backend: str, width: int, itemsize: int) -> Tile:
    """The tile of `TILES`, with fewer tokens where a TPU's vector memory does not hold its operands at this width."""
    tile = TILES[backend]
    while backend == "tpu" and tile.tokens > LANES and _operand_bytes(tile, width, itemsize) > _VMEM:
        tile = tile._replace(tokens=tile.tokens - LANES)
    return tile


def _operand_bytes(tile: Tile, width: int, itemsize: int) -> int:
    """Of the rows of hidden states and the columns of the unembedding, each twice: one pair arrives while the other is used."""
    return 2 * (tile.tokens + tile.vocab) * width * itemsize


def _compiler_params(backend: str, tile: Tile, width: int, itemsize: int):
    if backend == "cpu":
        return None
    if backend == "tpu":
        from jax.experimental.pallas import tpu

        # The smallest tile of a very wide model needs more than a kernel gets unasked, which is a part of what the chip has.
        needed = _operand_bytes(tile, width, itemsize)
        return tpu.CompilerParams(vmem_limit_bytes=needed + _VMEM // 2) if needed > _VMEM else None
    # Without parameters JAX would choose Mosaic GPU, which is being removed from pallas_call.
    from jax.experimental.pallas import triton

    # The pipeline's stages must fit in 164 KiB of shared memory: 32 KiB each in bfloat16, 64 KiB in float32.
    return triton.CompilerParams(num_warps=8, num_stages=3 if itemsize == 2 else 2)
