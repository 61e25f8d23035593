"""A step's samples as arrays: one response a row, per-token arrays aligned with the response alone.

Row i holds its prompt from position 0, then its response, then padding. Column t of a `[responses, tokens]` array belongs to the
response's token t, whatever the prompt's length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from dcore_jax.algorithms import PolicyBatch
from dcore_jax.engines import Sample


class Sequences(NamedTuple):
    """What the network reads; rows are responses, leading axes may divide them into microbatches."""

    tokens: Int[Array | np.ndarray, "*rows length"]
    segment_ids: Int[Array | np.ndarray, "*rows length"]  # 1, and 0 on padding
    starts: Int[
        Array | np.ndarray, "*rows"
    ]  # length of the prompt: the position of the response's first token
    mask: Bool[Array | np.ndarray, "*rows tokens"]  # True on the response's tokens


class Padded(NamedTuple):
    """A step's samples as arrays of one shape."""

    sequences: Sequences
    engine_logprobs: Float32[np.ndarray, "responses tokens"]  # 0 outside the mask
    groups: Int32[np.ndarray, "responses"]


class Scored(NamedTuple):
    """What a step learns from: its samples and what the trainer has computed of them; host arrays."""

    padded: Padded
    regions: Int[np.ndarray, "responses tokens"]
    old_logprobs: Float[np.ndarray, "responses tokens"]
    old_entropy: Float[np.ndarray, "responses tokens"]
    policy: PolicyBatch
    reward_kl: Float[np.ndarray, "responses"] | None = (
        None  # what the KL to the reference takes from each reward
    )


def pad_samples(groups: Sequence[Sequence[Sample]], *, max_prompt: int, max_response: int) -> Padded:
    """Arrays of one of few shapes (see `padded_length`), so that a steady state compiles nothing."""
    samples = [sample for group in groups for sample in group]
    rows = len(samples)
    tokens = padded_length(max(len(s.ids) for s in samples), max_response)
    length = padded_length(max(len(s.prompt_ids) + len(s.ids) for s in samples), max_prompt + max_response)
    out = Sequences(
        np.zeros((rows, length), np.int32),
        np.zeros((rows, length), np.int32),
        np.zeros(rows, np.int32),
        np.zeros((rows, tokens), bool),
    )
    engine_logprobs = np.zeros((rows, tokens), np.float32)
    for row, sample in enumerate(samples):
        start, end = len(sample.prompt_ids), len(sample.prompt_ids) + len(sample.ids)
        out.tokens[row, :start], out.tokens[row, start:end] = sample.prompt_ids, sample.ids
        out.segment_ids[row, :end] = 1
        out.starts[row] = start
        out.mask[row, : len(sample.ids)] = True
        engine_logprobs[row, : len(sample.ids)] = sample.logprobs
    numbers = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    return Padded(out, engine_logprobs, numbers)


def padded_length(longest: int, limit: int) -> int:
    """The smallest of limit, limit / 2, limit / 4 and limit / 8 (rounded up) that holds `longest` tokens."""
    return min(size for size in (-(-limit // part) for part in (1, 2, 4, 8)) if size >= min(longest, limit))
