"""RL's update on padded rows, one response a row: what packed rows are measured and tested against.

Row i holds its prompt from position 0, then its response, then padding to one of four lengths; the head runs on a padded window
of each response. It was the trainer's own path until November 2026.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcore_jax.algorithms import (
    AlgorithmConfig,
    choose_penalised,
    policy_batch_denominator,
    policy_batch_loss,
)
from dcore_jax.engines import Sample
from dcore_jax.kernels import logprobs_and_entropy
from dcore_jax.losses import PolicySums, add_policy_sums
from dcore_jax.rl.batch import padded_length
from dcore_jax.rl.step import nothing_accumulated


class Sequences(NamedTuple):
    """What the network reads; rows are responses, leading axes may divide them into microbatches."""

    tokens: Any  # Int [*rows, length]
    segment_ids: Any  # Int [*rows, length]: 1, and 0 on padding
    starts: Any  # Int [*rows]: length of the prompt
    mask: Any  # Bool [*rows, tokens]: True on the response's tokens


def pad_samples(groups: Sequence[Sequence[Sample]], *, max_prompt: int, max_response: int) -> Sequences:
    """One response a row."""
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
    for row, sample in enumerate(samples):
        start, end = len(sample.prompt_ids), len(sample.prompt_ids) + len(sample.ids)
        out.tokens[row, :start], out.tokens[row, start:end] = sample.prompt_ids, sample.ids
        out.segment_ids[row, :end] = 1
        out.starts[row] = start
        out.mask[row, : len(sample.ids)] = True
    return out


def padded_logprobs(
    graph: nnx.GraphDef, params: Any, sequences: Sequences, *, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies, `[rows, tokens]`; 0 outside the mask."""
    model = nnx.merge(graph, params)
    hidden = model.hidden(sequences.tokens, None, sequences.segment_ids)
    mask = jnp.asarray(sequences.mask)
    last = sequences.tokens.shape[1] - 1
    at = jnp.clip(sequences.starts[:, None] + jnp.arange(mask.shape[1]), 1, last)
    targets = jnp.take_along_axis(jnp.asarray(sequences.tokens), at, axis=1)
    before = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
    found = logprobs_and_entropy(
        before.reshape(-1, hidden.shape[-1]),
        model.unembed.astype(hidden.dtype),
        targets.reshape(-1),
        temperature=temperature,
    )
    logprobs, entropy = (jnp.where(mask, x.reshape(mask.shape), 0.0) for x in found)
    return logprobs, entropy


def padded_gradient(
    graph: nnx.GraphDef, config: AlgorithmConfig, *, max_response: int, temperature: float = 1.0
) -> Callable[..., tuple[jax.Array, PolicySums, Any]]:
    """`(params, sequences, policy) -> (loss, sums, gradient)` of a minibatch, whose arrays are `[micro, rows, ...]`."""

    def loss(params: Any, micro: tuple, denominator: Any) -> tuple[jax.Array, PolicySums]:
        sequences, policy = micro
        logprobs, entropy = padded_logprobs(graph, params, sequences, temperature=temperature)
        return policy_batch_loss(config, logprobs, policy, denominator=denominator, entropy=entropy)

    def gradient(params: Any, sequences: Sequences, policy: Any) -> tuple[jax.Array, PolicySums, Any]:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), policy)
        denominator = policy_batch_denominator(config, flat, max_length=max_response)
        gradient_of = jax.value_and_grad(partial(loss, denominator=denominator), has_aux=True)
        if sequences.tokens.shape[0] == 1:
            first = jax.tree.map(lambda x: x[0], (sequences, policy))
            (value, sums), found = gradient_of(params, first)
            return value, sums, found
        if config.kl_cov_ratio:
            logprobs = jax.lax.map(
                lambda rows: padded_logprobs(graph, params, rows, temperature=temperature)[0], sequences
            )
            chosen = choose_penalised(config, logprobs.reshape(flat.mask.shape), flat)
            policy = jax.tree.map(lambda x: x.reshape(*policy.mask.shape[:2], *x.shape[1:]), chosen)

        def accumulate(carry: Any, micro: tuple) -> tuple[Any, None]:
            (value, sums), found = gradient_of(params, micro)
            added = jax.tree.map(jnp.add, carry.gradient, found)
            return carry._replace(
                loss=carry.loss + value, sums=add_policy_sums(carry.sums, sums), gradient=added
            ), None

        return tuple(jax.lax.scan(accumulate, nothing_accumulated(params), (sequences, policy))[0])

    return gradient
