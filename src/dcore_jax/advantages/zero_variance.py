"""Which groups have no reward variance: one rule, decided on the rewards, for advantages, sampling and metrics.

Equality has to be a tolerance. Scores that are equal on paper may differ in their last bits, because their parts were
added in another order or are no binary fractions (0.1 + 0.2 and 0.3). Compared with `==` such a group is missed, and
GRPO then divides the rounding residue by its own standard deviation, which turns rounding into advantages near 1.

The tolerance is relative to the size of the rewards and is applied to highest - lowest, not to a standard deviation:
a difference of two floats this close is exact, so the answer depends neither on the order of the responses nor on the
group size, and NumPy on the host and XLA on any device agree on it bit for bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Num

# A reward closer to its group's mean than this share of the group's largest |reward| is at the mean: four times the
# spacing of float32, above what summation leaves behind and far below any difference that a reward means.
RESOLUTION = 4 * float(np.finfo(np.float32).eps)


class GroupRange(NamedTuple):
    """The rewards of each response's group, one entry per response; NumPy or JAX arrays as the inputs were."""

    segment: Integer[Array | np.ndarray, "responses"]  # the group as a number below the number of responses
    size: Num[Array | np.ndarray, "responses"]  # responses in the group
    lowest: Float[Array | np.ndarray, "responses"]  # lowest reward of the group
    highest: Float[Array | np.ndarray, "responses"]  # highest reward of the group
    largest: Float[Array | np.ndarray, "responses"]  # largest |reward| of the group

    @property
    def zero_variance(self) -> Bool[Array | np.ndarray, "responses"]:
        """Whether the group's rewards are equal: every one within RESOLUTION of the middle between the extremes."""
        return self.highest - self.lowest <= 2 * RESOLUTION * self.largest


def group_range(
    rewards: Num[Array | np.ndarray, "responses"], groups: Num[Array | np.ndarray, "responses"]
) -> GroupRange:
    """Lowest and highest reward of every group, in float32; on the host if both arrays are NumPy's.

    `groups` are any integers in any order. Rows that only pad the batch need group numbers of their own.
    """
    if isinstance(rewards, np.ndarray) and isinstance(groups, np.ndarray):
        rewards = rewards.astype(np.float32)
        _, segment, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        low, high = (np.full(sizes.shape, end, np.float32) for end in (np.inf, -np.inf))
        np.minimum.at(low, segment, rewards)
        np.maximum.at(high, segment, rewards)
        low, high = low[segment], high[segment]
        return GroupRange(segment, sizes[segment], low, high, np.maximum(np.abs(low), np.abs(high)))
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards, jnp.float32))
    # jit needs a static number of segments; there cannot be more groups than responses.
    bound = rewards.shape[0]
    if isinstance(groups, np.ndarray):  # before JAX keeps 32 of their bits
        groups = np.unique(groups, return_inverse=True)[1]
    segment = jnp.unique(jnp.asarray(groups), return_inverse=True, size=bound)[1].reshape(bound)
    size = jax.ops.segment_sum(jnp.ones_like(rewards), segment, bound)[segment]
    lowest = jax.ops.segment_min(rewards, segment, bound)[segment]
    highest = jax.ops.segment_max(rewards, segment, bound)[segment]
    return GroupRange(segment, size, lowest, highest, jnp.maximum(jnp.abs(lowest), jnp.abs(highest)))


def zero_variance_groups(
    rewards: Num[Array | np.ndarray, "responses"], groups: Num[Array | np.ndarray, "responses"]
) -> Bool[Array | np.ndarray, "responses"]:
    """For every response, whether all rewards of its group are equal up to float32's rounding.

    Equal means highest - lowest <= 8 eps * largest |reward|, in float32 (eps = 2^-23). GRPO's advantages are exactly 0
    in such a group. A group of one is such a group; `has_reward_variance` keeps it all the same.

    Two NumPy arrays are answered with a NumPy array and without compiling; JAX arrays may be traced by `jit`.
    """
    return group_range(rewards, groups).zero_variance
