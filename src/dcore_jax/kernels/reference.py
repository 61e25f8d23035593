"""The dense definition: all logits at once, gradients by JAX's autodiff. Slow and large; the tests compare the others with it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dcore_jax.kernels.tiles import dot, target_in_range


def logprobs_and_entropy(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    temperature: Float[Array, ""],
) -> tuple[Float[Array, " tokens"], Float[Array, " tokens"]]:
    """`log softmax(hidden @ unembed / temperature)` at the targets, and `-sum p log p` without a gradient."""
    logits = dot(hidden, unembed, (1, 0)) / temperature
    log_p = jax.nn.log_softmax(logits, axis=-1)
    inside = target_in_range(targets, unembed.shape[1])
    logprobs = jnp.take_along_axis(log_p, jnp.where(inside, targets, 0)[:, None], axis=1)[:, 0]
    constant = jax.lax.stop_gradient(log_p)
    entropy = -jnp.sum(jnp.exp(constant) * constant, axis=-1)
    return jnp.where(inside, logprobs, jnp.nan), entropy


def cross_entropy(
    hidden: Float[Array, "tokens width"],
    unembed: Float[Array, "width vocab"],
    targets: Int[Array, " tokens"],
    weights: Float[Array, " tokens"],
) -> Float[Array, ""]:
    """`sum_t weights_t * -log softmax(hidden_t @ unembed)[targets_t]`; a token of weight 0 counts exactly 0."""
    used = weights != 0
    # Both the state and the target of an unused token may be anything (padding): neither may reach the sum.
    logprobs, _ = logprobs_and_entropy(
        jnp.where(used[:, None], hidden, 0), unembed, jnp.where(used, targets, 0), jnp.float32(1)
    )
    return -jnp.sum(jax.lax.stop_gradient(weights) * logprobs)
