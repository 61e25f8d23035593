"""A step's samples as arrays.

What the network reads is packed (rows.py); what the loss reads is one response a row: column t of a `[responses, tokens]` array
belongs to the response's token t.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from dcore_jax.algorithms import PolicyBatch
from dcore_jax.engines import Sample
from dcore_jax.rl.rows import Rows


class Responses(NamedTuple):
    """What is known of the sampled tokens before the trainer has computed anything."""

    mask: Bool[np.ndarray, "responses tokens"]  # True on sampled tokens
    engine_logprobs: Float32[np.ndarray, "responses tokens"]  # 0 outside the mask
    groups: Int32[np.ndarray, "responses"]


class Scored(NamedTuple):
    """What a step learns from: its samples and what the trainer has computed of them; host arrays."""

    responses: Responses
    passes: tuple[tuple[Rows, ...], ...]  # of each update, whose responses follow one another
    regions: Int[np.ndarray, "responses tokens"]
    old_logprobs: Float[np.ndarray, "responses tokens"]
    old_entropy: Float[np.ndarray, "responses tokens"]
    policy: PolicyBatch
    reward_kl: Float[np.ndarray, "responses"] | None = (
        None  # what the KL to the reference takes from each reward
    )


def response_arrays(groups: Sequence[Sequence[Sample]], *, max_response: int) -> Responses:
    """Arrays of one of few widths (see `padded_length`), so that a steady state compiles nothing."""
    samples = [sample for group in groups for sample in group]
    tokens = padded_length(max(len(s.ids) for s in samples), max_response)
    lengths = np.array([len(sample.ids) for sample in samples])
    engine_logprobs = np.zeros((len(samples), tokens), np.float32)
    for row, sample in enumerate(samples):
        engine_logprobs[row, : len(sample.ids)] = sample.logprobs
    numbers = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    return Responses(np.arange(tokens) < lengths[:, None], engine_logprobs, numbers)


def row_arrays(scored: Scored) -> dict[str, np.ndarray]:
    """The arrays of a step's passes by name, `update0_pass0_tokens` and so on."""
    return {
        f"update{u}_pass{p}_{name}": np.asarray(values)
        for u, passes in enumerate(scored.passes)
        for p, rows in enumerate(passes)
        for name, values in rows._asdict().items()
        if values is not None
    }


def padded_length(longest: int, limit: int) -> int:
    """The smallest of limit, limit / 2, limit / 4 and limit / 8 (rounded up) that holds `longest` tokens."""
    return min(size for size in (-(-limit // part) for part in (1, 2, 4, 8)) if size >= min(longest, limit))
