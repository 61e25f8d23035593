"""Sampling of one token per row: temperature, top-k, top-p and log-probabilities, without sorting the vocabulary.

Shape letters: R rows (slots), V vocabulary. Tables over the vocabulary have the shape [R, I, J], token = i * J + j, so that every
reduction runs over I first, which a CPU does with full vectors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32


class RowSampling(NamedTuple):
    """SamplingParams of every row, as arrays."""

    seed: UInt32[Array | np.ndarray, "rows 2"]  # high and low word
    temperature: Float[Array | np.ndarray, " rows"]  # 0: greedy
    top_p: Float[Array | np.ndarray, " rows"]
    top_k: Int[Array | np.ndarray, " rows"]  # vocabulary size or more: all


def sample(
    logits: Float[Array, "rows vocab"], step: Int[Array, " rows"], sampling: RowSampling
) -> tuple[Int[Array, " rows"], Float[Array, " rows"]]:
    """One token per row, and its log-probability at the row's temperature (1 for greedy) before top-k and top-p.

    A row's random numbers depend only on its seed and `step` (the number of tokens it has sampled so far). A row whose logits are
    not finite gets a log-probability that is not finite either.
    """
    greedy = sampling.temperature == 0
    scaled = logits.astype(jnp.float32) / jnp.where(greedy, 1.0, sampling.temperature)[:, None]
    table = _table(scaled)
    peak = table.max(axis=1).max(axis=1)
    weights = jnp.exp(table - peak[:, None, None])  # in [0, 1], the best token's exactly 1
    total = weights.sum(axis=1).sum(axis=1)
    kept = jax.lax.cond(
        jnp.any(((sampling.top_p < 1) | (sampling.top_k < logits.shape[1])) & ~greedy),
        lambda: jnp.where(weights >= _threshold(weights, sampling)[:, None, None], weights, 0.0),
        lambda: weights,
    )
    drawn = jax.lax.cond(
        jnp.all(greedy), lambda: jnp.zeros_like(step), lambda: _draw(kept, sampling.seed, step)
    )
    token = jnp.where(greedy, _first_of(table == peak[:, None, None]), drawn)
    token = jnp.minimum(token, logits.shape[1] - 1)  # NaN logits: stay in range; the log-probability shows it
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=1)[:, 0]
    return token, chosen - peak - jnp.log(total)


def _table(scaled: Float[Array, "rows vocab"]) -> Float[Array, "rows i j"]:
    rows, vocab = scaled.shape
    columns = 128 if vocab < 2**16 else 512
    padded = jnp.pad(scaled, ((0, 0), (0, -vocab % columns)), constant_values=-jnp.inf)
    return padded.reshape(rows, -1, columns)


def _first_of(where: Array) -> Int[Array, " rows"]:
    """The smallest token for which `where` [R, I, J] holds."""
    _, rows, columns = where.shape
    tokens = jnp.arange(rows * columns, dtype=jnp.int32).reshape(rows, columns)
    return jnp.where(where, tokens, rows * columns).min(axis=1).min(axis=1)


def _draw(weights: Float[Array, "rows i j"], seed: Array | np.ndarray, step: Array) -> Int[Array, " rows"]:
    """A token with probability proportional to its weight: first its column j, then its row i, each by inverting the CDF.

    Two uniform numbers in place of one, because the 23 random bits of one would quantise the probabilities of rare tokens.
    """

    def uniforms(seed, step):
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        # The middle of each of the 2**23 steps: a 0 would take the first token of any weight, however small.
        return jax.random.uniform(jax.random.fold_in(key, step), (2,)) + 2.0**-24

    u = jax.vmap(uniforms)(seed, step)
    j = _invert(weights.sum(axis=1), u[:, 0])
    column = jnp.take_along_axis(weights, j[:, None, None], axis=2)[:, :, 0]
    return _invert(column, u[:, 1]) * weights.shape[2] + j


def _invert(weights: Float[Array, "rows n"], u: Float[Array, " rows"]) -> Int[Array, " rows"]:
    """The first index whose cumulative weight exceeds u * total; never one of weight 0, whatever the rounding of the sums."""
    cumulative = jnp.cumsum(weights, axis=1)
    beyond = (cumulative > (u * cumulative[:, -1])[:, None]) & (weights > 0)
    index = jnp.where(beyond.any(axis=1), jnp.argmax(beyond, axis=1), jnp.argmax(weights, axis=1))
    return index.astype(jnp.int32)


def _threshold(weights: Float[Array, "rows i j"], sampling: RowSampling) -> Float[Array, " rows"]:
    """The smallest weight of a kept token: top-k first, then top-p of what is left, as in transformers and vLLM.

    Tokens that tie with the last one kept are kept as well.
    """

    def mass(threshold):
        return jnp.where(weights >= threshold[:, None, None], weights, 0.0).sum(axis=1).sum(axis=1)

    def count(threshold):
        return (weights >= threshold[:, None, None]).sum(axis=1, dtype=jnp.int32).sum(axis=1)

    zero = jnp.zeros_like(sampling.top_p)
    by_rank = _largest(lambda threshold: count(threshold) >= sampling.top_k, zero)
    by_rank = jnp.where(sampling.top_k < weights.shape[1] * weights.shape[2], by_rank, zero)
    wanted = sampling.top_p * mass(by_rank)
    by_mass = _largest(lambda threshold: mass(jnp.maximum(threshold, by_rank)) >= wanted, zero)
    return jnp.where(sampling.top_p < 1, jnp.maximum(by_rank, by_mass), by_rank)


def _largest(holds, zero: Float[Array, " rows"]) -> Float[Array, " rows"]:
    """The largest float32 in [0, 1] for which `holds`, by bisection on bit patterns, which are ordered as such floats are."""

    def halve(_, bounds):
        low, high = bounds  # holds at low, not known to hold beyond high
        middle = low + (high - low + 1) // 2
        held = holds(jax.lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(held, middle, low), jnp.where(held, high, middle - 1)

    low = zero.astype(jnp.int32)
    one = jnp.full_like(low, 0x3F800000)  # the bits of 1.0; 30 halvings of this range leave one number
    low, _ = jax.lax.fori_loop(0, 30, halve, (low, one))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
