"""Group-relative advantages without entropy: GRPO and Dr.GRPO."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, Shaped

# A Python number or a traced scalar.
Scalar = float | int | np.number | Num[Array, ""]
# Rewards of one group closer together than this share of their size are equal: float32 cannot tell them
# apart, and dividing their residue by its own standard deviation would turn rounding into advantages.
_RESOLUTION = 4 * float(np.finfo(np.float32).eps)


class GroupStatistics(NamedTuple):
    """Each response's reward against its own prompt group."""

    deviation: Float[Array, "responses"]  # R_i - mean; exactly 0 where the rewards of the group do not differ
    std: Float[Array, "responses"]  # standard deviation of the group, with n - 1; 0 for a group of one
    spread: Float[Array, "responses"]  # largest |R_j - mean| in the group
    size: Float[Array, "responses"]  # responses in the group


def group_statistics(
    rewards: Num[Array | np.ndarray, "responses"], groups: Num[Array | np.ndarray, "responses"]
) -> GroupStatistics:
    """Mean, standard deviation and spread of the rewards within every group, in float32.

    `groups` are any integers in any order: responses of one group need not be neighbours. Rows that only pad
    the batch need group numbers of their own, or they count in the mean of a real group. A group of one
    deviates by 0.
    """
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards, jnp.float32))
    # jit needs a static number of segments; there cannot be more groups than responses.
    bound = rewards.shape[0]
    if isinstance(groups, np.ndarray):  # before JAX keeps 32 of their bits
        groups = np.unique(groups, return_inverse=True)[1]
    _, segment = jnp.unique(jnp.asarray(groups), return_inverse=True, size=bound)
    segment = segment.reshape(bound)

    def total(values: Array) -> Array:
        return jax.ops.segment_sum(values, segment, bound)[segment]

    size = total(jnp.ones_like(rewards))
    # Measured from the group's smallest reward, equal rewards give a mean and a deviation of exactly 0.
    above_lowest = rewards - jax.ops.segment_min(rewards, segment, bound)[segment]
    deviation = above_lowest - total(above_lowest) / size
    largest = jax.ops.segment_max(jnp.abs(rewards), segment, bound)[segment]
    deviation = jnp.where(jnp.abs(deviation) <= _RESOLUTION * largest, 0.0, deviation)
    std = jnp.sqrt(total(deviation**2) / jnp.maximum(size - 1, 1))
    spread = jax.ops.segment_max(jnp.abs(deviation), segment, bound)[segment]
    return GroupStatistics(deviation, std, spread, size)


def _on_tokens(
    values: Float[Array, "responses"], mask: Shaped[Array | np.ndarray, "responses tokens"]
) -> Array:
    """The same value for every token of a response, 0 outside the mask."""
    return jnp.where(token_mask(mask), values[:, None], 0.0)


def token_mask(mask: Shaped[Array | np.ndarray, "responses tokens"]) -> Bool[Array, "responses tokens"]:
    """A mask of booleans, integers or floats as booleans."""
    return jnp.asarray(mask) != 0


def grpo(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    std_epsilon: Scalar = 1e-6,
) -> Float[Array, "responses tokens"]:
    """GRPO (2402.03300): `A_i = (R_i - mean) / (std + std_epsilon)` in the prompt group, std with n - 1.

    The same for every token of response i, 0 outside `mask`, exactly 0 where all rewards of the group are
    equal (also up to float32 rounding) and in a group of one. No gradient flows through it.
    """
    statistics = group_statistics(rewards, groups)
    return _on_tokens(statistics.deviation / (statistics.std + std_epsilon), mask)


def dr_grpo(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
) -> Float[Array, "responses tokens"]:
    """Dr.GRPO: `A_i = R_i - mean`, no division by the standard deviation (2503.20783)."""
    return _on_tokens(group_statistics(rewards, groups).deviation, mask)
