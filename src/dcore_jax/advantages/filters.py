"""What DAPO leaves out or marks down: groups without reward variance, and responses that ran too long."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, Shaped

from dcore_jax.advantages.group_relative import Scalar, group_statistics, token_mask
from dcore_jax.errors import UserError


def has_reward_variance(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    *,
    zeta: Scalar = 1e-8,
) -> Bool[Array, "responses"]:
    """Dynamic sampling's filter (DAPO Eq. 11): False for responses of groups whose rewards are all equal.

    A group of one has nothing to be compared with and is kept, as in the released code.
    """
    statistics = group_statistics(rewards, groups)
    return (statistics.spread > zeta) | (statistics.size == 1)


def soft_overlong_penalty(
    lengths: Num[Array | np.ndarray, "responses"], *, max_length: int, buffer: int, factor: Scalar = 1.0
) -> Float[Array, "responses"]:
    """DAPO's soft overlong punishment (2503.14476, Eq. 13), added to the reward: from 0 down to `-factor`.

    0 up to `max_length - buffer` tokens, then linear, `-factor` from `max_length` on. Raises `UserError`
    unless `0 < buffer <= max_length`.
    """
    if not 0 < buffer <= max_length:
        raise UserError(f"overlong buffer {buffer} must be above 0 and at most max_length {max_length}")
    excess = (jnp.asarray(lengths, jnp.float32) - (max_length - buffer)) / buffer
    return -factor * jnp.clip(excess, 0.0, 1.0)


def drop_overlong(
    mask: Shaped[Array | np.ndarray, "responses tokens"], truncated: Bool[Array | np.ndarray, "responses"]
) -> Bool[Array, "responses tokens"]:
    """Overlong filtering: the mask without the responses that were cut off at the length limit.

    Their rewards still count in the mean of their group; only their tokens leave the loss and its
    denominator.
    """
    return token_mask(mask) & ~jnp.asarray(truncated)[:, None]
