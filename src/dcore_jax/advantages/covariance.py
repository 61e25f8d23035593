"""Which tokens KL-Cov penalises: those whose advantage and log-probability vary together most."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from dcore_jax.advantages.group_relative import Scalar, token_mask


def kl_cov_selection(
    logprobs: Float[Array | np.ndarray, "responses tokens"],
    advantages: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    ratio: Scalar = 0.002,
) -> Bool[Array, "responses tokens"]:
    """The share `ratio` of the masked tokens, at least one, whose covariance is largest; detached.

    `cov_t = (log pi(y_t) - mean log pi) * (A_t - mean A)`, with means over all masked tokens. Pass all tokens among
    which to choose, an update's minibatch, with the log-probabilities of the policy that is updated, so that the choice
    does not depend on the split into microbatches. Of equal covariances the
    earlier token in row order is taken.

    Source:
      2505.22617.
    """
    inside = token_mask(mask)
    count = jnp.sum(inside)

    def centred(values: Array | np.ndarray) -> Array:
        values = jnp.where(inside, jax.lax.stop_gradient(jnp.asarray(values, jnp.float32)), 0.0)
        return values - jnp.sum(values) / jnp.maximum(count, 1)

    covariance = jnp.where(inside, centred(logprobs) * centred(advantages), -jnp.inf)
    order = jnp.argsort(-covariance.ravel(), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    # The factor keeps float32 from flooring an exact product such as 500 * 0.002 to one less.
    chosen = jnp.maximum(jnp.floor(count * ratio * (1 + 1e-6)), 1)
    return (rank < chosen).reshape(inside.shape) & inside
