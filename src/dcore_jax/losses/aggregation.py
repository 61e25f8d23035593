"""From one loss per token to one loss per batch, exact however the batch is split into microbatches.

Every aggregation is a sum over responses divided by a denominator that is itself a sum over responses.
Compute the denominator once for the global batch, pass it to every microbatch, and the microbatches' losses
add up to the loss of the whole.
"""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from dcore_jax.errors import UserError, check_choice

# A Python number or a traced scalar.
Scalar = float | int | np.number | Num[Array, ""]
Aggregation = Literal["token_mean", "sequence_mean", "constant_length", "weighted_token_mean"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


def loss_denominator(
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    aggregation: str = "token_mean",
    *,
    max_length: int | None = None,
    token_weights: Float[Array | np.ndarray, "responses tokens"] | None = None,
) -> Float[Array, ""]:
    """What `aggregate`'s sum is divided by; additive over microbatches. Rows with an empty mask do not count.

    Args:
      mask: which tokens are sampled ones.
      aggregation: `token_mean`: masked tokens (DAPO). `sequence_mean`: responses (GRPO). `constant_length`: responses
        times `max_length` (Dr.GRPO: a constant, so that long responses are not discounted). `weighted_token_mean`:
        sum of the token weights (ResT's released code).
      max_length: longest response allowed, in tokens; only `constant_length` needs it.
      token_weights: only `weighted_token_mean` needs them.

    Raises:
      UserError: an unknown aggregation, or the argument that it needs is missing.
    """
    check_choice("aggregation", aggregation, AGGREGATIONS)
    inside = jnp.asarray(mask) != 0
    responses = jnp.sum(inside.any(axis=1), dtype=jnp.float32)
    if aggregation == "token_mean":
        return jnp.sum(inside, dtype=jnp.float32)
    if aggregation == "sequence_mean":
        return responses
    if aggregation == "constant_length":
        if max_length is None:
            raise UserError("aggregation 'constant_length' needs max_length, the longest response allowed")
        return responses * max_length
    if token_weights is None:
        raise UserError("aggregation 'weighted_token_mean' needs token_weights")
    return jnp.sum(jnp.where(inside, jnp.asarray(token_weights, jnp.float32), 0.0))


def aggregate(
    per_token: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    aggregation: str = "token_mean",
) -> Float[Array, ""]:
    """The numerator: the sum of masked tokens, or for `sequence_mean` the sum of the responses' token means.

    Divide by `loss_denominator` of the global batch.

    Raises:
      UserError: an unknown aggregation.
    """
    check_choice("aggregation", aggregation, AGGREGATIONS)
    inside = jnp.asarray(mask) != 0
    values = jnp.where(inside, per_token, 0.0)
    if aggregation == "sequence_mean":
        return jnp.sum(jnp.sum(values, axis=1) / jnp.maximum(jnp.sum(inside, axis=1), 1))
    return jnp.sum(values)
