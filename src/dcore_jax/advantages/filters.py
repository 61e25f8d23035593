"""What DAPO leaves out or marks down: groups without reward variance, and responses that ran too long."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, Shaped

from dcore_jax.advantages.group_relative import Scalar, token_mask
from dcore_jax.advantages.zero_variance import group_range
from dcore_jax.errors import UserError


def has_reward_variance(
    rewards: Num[Array | np.ndarray, "responses"], groups: Num[Array | np.ndarray, "responses"]
) -> Bool[Array | np.ndarray, "responses"]:
    """Dynamic sampling's filter: False for the responses of groups whose rewards are all equal.

    Equal as in `zero_variance_groups`. A group of one has nothing to be compared with and is kept, as in the released
    code. Two NumPy arrays are answered with a NumPy array and without compiling; JAX arrays may be traced by `jit`.

    Source:
      DAPO, 2503.14476, Eq. 11.
    """
    group = group_range(rewards, groups)
    return ~group.zero_variance | (group.size == 1)


def soft_overlong_penalty(
    lengths: Num[Array | np.ndarray, "responses"], *, max_length: int, buffer: int, factor: Scalar = 1.0
) -> Float[Array, "responses"]:
    """DAPO's soft overlong punishment, to be added to the reward: from 0 down to `-factor`.

    0 up to `max_length - buffer` tokens, then linear, `-factor` from `max_length` tokens on.

    Raises:
      UserError: `buffer` is not above 0, or above `max_length`.

    Source:
      DAPO, 2503.14476, Eq. 13.
    """
    if not 0 < buffer <= max_length:
        raise UserError(f"overlong buffer {buffer} must be above 0 and at most max_length {max_length}")
    excess = (jnp.asarray(lengths, jnp.float32) - (max_length - buffer)) / buffer
    return -factor * jnp.clip(excess, 0.0, 1.0)


def drop_overlong(
    mask: Shaped[Array | np.ndarray, "responses tokens"], truncated: Bool[Array | np.ndarray, "responses"]
) -> Bool[Array, "responses tokens"]:
    """Overlong filtering: the mask without the responses that were cut off at the length limit.

    Their rewards still count in the mean of their group; only their tokens leave the loss and its denominator.

    Source:
      DAPO, 2503.14476, section 3.4.
    """
    return token_mask(mask) & ~jnp.asarray(truncated)[:, None]
