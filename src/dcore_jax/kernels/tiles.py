"""Arithmetic that all implementations share (online softmax, float32 products), and block sizes (docs/results/kernels.md)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dcore_jax.target import target_platform

# A tile of logits is [TOKEN_BLOCK, vocabulary block] float32, at most TILE_ENTRIES entries.
TOKEN_BLOCK = {"cpu": 1024, "gpu": 4096, "tpu": 4096}
TILE_ENTRIES = {"cpu": 4 * 2**20, "gpu": 128 * 2**20, "tpu": 32 * 2**20}
# cross_entropy holds whole rows of logits, [rows, vocab] float32: at most ROW_ENTRIES entries, and between MIN_ROWS and MAX_ROWS
# rows. More rows read and write the gradient's accumulator less often; fewer skip more of the tokens without weight.
ROW_ENTRIES = {"cpu": 80 * 2**20, "gpu": 512 * 2**20, "tpu": 128 * 2**20}
MIN_ROWS = 128
MAX_ROWS = {"cpu": 512, "gpu": 2048, "tpu": 1024}
# Block starts are multiples of this, which suits SIMD registers, tensor cores and TPU lanes.
LANES = 128
# Below every logit, and finite, so that its difference from any of them is finite too.
LOWEST = -1e30


class Softmax(NamedTuple):
    """Running statistics of a softmax over a part of the vocabulary, each `[tokens]` float32.

    maximum: max of the logits; total: `sum exp(l - maximum)`; moment: `sum (l - maximum) exp(l - maximum)`;
    target: the logit of the target token, 0 if it is not in this part.
    """

    maximum: Float[Array, " tokens"]
    total: Float[Array, " tokens"]
    moment: Float[Array, " tokens"]
    target: Float[Array, " tokens"]


def empty(tokens: int) -> Softmax:
    """Statistics of an empty part of the vocabulary: the neutral element of `merge`."""
    zeros = jnp.zeros((tokens,), jnp.float32)
    return Softmax(jnp.full((tokens,), LOWEST, jnp.float32), zeros, zeros, zeros)


def summarise(logits: Float[Array, "tokens block"], columns: Int[Array, " tokens"]) -> Softmax:
    """Statistics of one block of logits; `columns` are the targets relative to the block's first column."""
    maximum = jnp.max(logits, axis=1)
    shifted = logits - maximum[:, None]
    weight = jnp.exp(shifted)
    return Softmax(maximum, jnp.sum(weight, axis=1), jnp.sum(shifted * weight, axis=1), pick(logits, columns))


def rescale(part: Softmax, maximum: Float[Array, " tokens"]) -> Softmax:
    """The same statistics relative to another, larger maximum."""
    shift = part.maximum - maximum
    factor = jnp.exp(shift)
    return Softmax(maximum, part.total * factor, (part.moment + shift * part.total) * factor, part.target)


def merge(left: Softmax, right: Softmax) -> Softmax:
    """Statistics of the union of two disjoint parts of the vocabulary (online softmax, arXiv 1805.02867)."""
    maximum = jnp.maximum(left.maximum, right.maximum)
    left, right = rescale(left, maximum), rescale(right, maximum)
    return Softmax(maximum, left.total + right.total, left.moment + right.moment, left.target + right.target)


def finish(
    whole: Softmax,
) -> tuple[Float[Array, " tokens"], Float[Array, " tokens"], Float[Array, " tokens"]]:
    """(logprob of the target, entropy, logsumexp), from the statistics of the whole vocabulary.

    With `Z = total`: logprob = (target - maximum) - log Z and entropy = log Z - moment / Z. Subtracting the maximum first keeps
    float32's precision when all logits are large.
    """
    log_total = jnp.log(whole.total)
    logprob = (whole.target - whole.maximum) - log_total
    # The exact entropy is never negative; a rounding error may make it so.
    entropy = jnp.maximum(log_total - whole.moment / whole.total, 0.0)
    return logprob, entropy, whole.maximum + log_total


def pick(logits: Float[Array, "tokens block"], columns: Int[Array, " tokens"]) -> Float[Array, " tokens"]:
    """`logits[t, columns[t]]`, or 0 where the column lies outside the block."""
    width = logits.shape[1]
    found = jnp.take_along_axis(logits, jnp.clip(columns, 0, width - 1)[:, None], axis=1)[:, 0]
    return jnp.where(target_in_range(columns, width), found, 0.0)


def target_in_range(targets: Int[Array, " tokens"], vocab: int) -> Bool[Array, " tokens"]:
    """Whether each target is one of `vocab` columns."""
    return (targets >= 0) & (targets < vocab)


def dot(
    left: Float[Array, "_ _"], right: Float[Array, "_ _"], contract: tuple[int, int]
) -> Float[Array, "_ _"]:
    """Matrix product over the axes `contract`, accumulated in float32.

    float32 operands ask for full precision, because a GPU would otherwise round them to TF32.
    """
    exact = left.dtype == jnp.float32 and right.dtype == jnp.float32
    return lax.dot_general(
        left,
        right,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def token_block(tokens: int) -> int:
    """Tokens of one tile."""
    return min(tokens, _here(TOKEN_BLOCK))


def vocab_block(tokens: int, vocab: int) -> int:
    """Columns of one tile: a multiple of LANES that keeps the tile within TILE_ENTRIES, or the whole vocabulary."""
    columns = _here(TILE_ENTRIES) // max(1, token_block(tokens))
    return min(vocab, max(LANES, columns // LANES * LANES))


def over_blocks(length: int, block: int, body, carry):
    """A loop `carry = body(start, size, carry)` over [0, length) in blocks; `size` is static, `start` may be traced.

    The last, shorter block is traced separately, so that no block needs a mask.
    """
    full, rest = divmod(length, block)
    if full == 1:
        carry = body(0, block, carry)
    elif full > 1:
        carry = lax.fori_loop(0, full, lambda i, c: body(i * block, block, c), carry)
    return body(full * block, rest, carry) if rest else carry


def cross_entropy_block(tokens: int, vocab: int) -> int:
    """Tokens of one block of whole rows of logits: a power of two within ROW_ENTRIES, or all tokens."""
    block = 1 << max(MIN_ROWS, _here(ROW_ENTRIES) // vocab).bit_length() - 1
    return max(1, min(tokens, block, _here(MAX_ROWS)))


def _here(sizes: dict[str, int]) -> int:
    """The entry for the target; that of `cpu` for a platform without one."""
    return sizes.get(target_platform(), sizes["cpu"])
