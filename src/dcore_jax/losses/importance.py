"""The mismatch between the log-probabilities of the engine and of the trainer: its size, and truncated importance weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from dcore_jax.errors import check_choice
from dcore_jax.losses.aggregation import Scalar


class EngineGap(NamedTuple):
    """How far the trainer's log-probabilities are from the engine's, on the same sampled tokens."""

    mean_abs: Float[Array, ""]  # mean |log pi_trainer - log pi_engine|, nats
    largest: Float[Array, ""]  # largest of them
    kl: Float[Array, ""]  # KL(engine || trainer) by k3, nats
    ess: Float[Array, ""]  # effective sample size of the untruncated token weights, share of the tokens
    truncated: Float[Array, ""]  # share of tokens whose weight exceeds the cap


def engine_gap(
    logprobs: Float[Array | np.ndarray, "responses tokens"],
    engine_logprobs: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    cap: Scalar = 2.0,
) -> EngineGap:
    """The trainer's log-probabilities compared with the engine's, over the masked tokens; a metric, without gradient.

    `cap` is that of `truncated_importance_weights`. Log-ratios are limited to [-20, 20] before `exp`.
    """
    inside, gap = _masked_gap(logprobs, engine_logprobs, mask)
    tokens = jnp.maximum(jnp.sum(inside), 1)
    weights = jnp.where(inside, jnp.exp(jnp.clip(gap, -20.0, 20.0)), 0.0)
    ess = jnp.sum(weights) ** 2 / jnp.maximum(jnp.sum(weights**2), 1e-30) / tokens
    kl = jnp.sum(jnp.where(inside, jnp.expm1(jnp.clip(gap, -20.0, 20.0)) - gap, 0.0)) / tokens
    return EngineGap(
        mean_abs=jnp.sum(jnp.abs(gap)) / tokens,
        largest=jnp.max(jnp.abs(gap), initial=0.0),
        kl=kl,
        ess=ess,
        truncated=jnp.sum(weights > cap) / tokens,
    )


def truncated_importance_weights(
    old_logprobs: Float[Array | np.ndarray, "responses tokens"],
    engine_logprobs: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    cap: Scalar = 2.0,
    level: str = "token",
) -> Float[Array, "responses tokens"]:
    """Truncated importance sampling: `min(pi_old / pi_engine, cap)`, a detached factor of the objective.

    Args:
      old_logprobs: log pi_old of the sampled tokens, by the trainer.
      engine_logprobs: log-probabilities of the same tokens by the engine that sampled them.
      mask: which tokens are sampled ones; the weight is 0 elsewhere.
      cap: largest weight.
      level: `token`: one weight per token. `sequence`: the product over the response, the same for each of its tokens;
        unbiased but for the cap, and of higher variance.

    Raises:
      UserError: an unknown level.
    """
    check_choice("importance level", level, ("token", "sequence"))
    inside, gap = _masked_gap(old_logprobs, engine_logprobs, mask)
    if level == "sequence":
        gap = jnp.broadcast_to(jnp.sum(gap, axis=1, keepdims=True), gap.shape)
    return jnp.where(inside, jnp.minimum(jnp.exp(jnp.clip(gap, -20.0, 20.0)), cap), 0.0)


def _masked_gap(
    logprobs: Float[Array | np.ndarray, "responses tokens"],
    engine_logprobs: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
) -> tuple[Array, Array]:
    """The mask as booleans and log pi_trainer - log pi_engine, 0 outside it and without gradient."""
    inside = jnp.asarray(mask) != 0
    gap = jnp.asarray(logprobs, jnp.float32) - jnp.asarray(engine_logprobs, jnp.float32)
    return inside, jnp.where(inside, jax.lax.stop_gradient(gap), 0.0)
