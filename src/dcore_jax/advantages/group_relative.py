"""Group-relative advantages without entropy: GRPO and Dr.GRPO."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, Shaped

from dcore_jax.advantages.zero_variance import RESOLUTION, group_range
from dcore_jax.errors import check_choice

# A Python number or a traced scalar.
Scalar = float | int | np.number | Num[Array, ""]
GroupStd = Literal["sample", "population"]
GROUP_STDS: tuple[str, ...] = get_args(GroupStd)


class GroupStatistics(NamedTuple):
    """Each response's reward compared with its own prompt group."""

    deviation: Float[Array, "responses"]  # R_i - mean; exactly 0 where the rewards of the group are equal
    std: Float[Array, "responses"]  # standard deviation of the group, with n - 1; 0 for a group of one
    spread: Float[Array, "responses"]  # largest |R_j - mean| in the group
    size: Float[Array, "responses"]  # responses in the group


def group_statistics(
    rewards: Num[Array | np.ndarray, "responses"], groups: Num[Array | np.ndarray, "responses"]
) -> GroupStatistics:
    """Deviation from the mean, standard deviation and spread of the rewards within every group, in float32.

    The deviation is exactly 0 in a group without reward variance (`zero_variance_groups`) and for a response at its
    group's mean up to rounding; a group of one deviates by 0. `groups` are any integers in any order: responses of one
    group need not be neighbours. Rows that only pad the batch need group numbers of their own, or they count in the
    mean of a real group.
    """
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards, jnp.float32))
    group = group_range(rewards, groups)
    segment, bound = group.segment, rewards.shape[0]

    def total(values: Array) -> Array:
        return jax.ops.segment_sum(values, segment, bound)[segment]

    # Measured from the group's lowest reward, equal rewards give a mean and a deviation of exactly 0.
    above_lowest = rewards - group.lowest
    deviation = above_lowest - total(above_lowest) / group.size
    at_mean = group.zero_variance | (jnp.abs(deviation) <= RESOLUTION * group.largest)
    deviation = jnp.where(at_mean, 0.0, deviation)
    std = jnp.sqrt(total(deviation**2) / jnp.maximum(group.size - 1, 1))
    spread = jax.ops.segment_max(jnp.abs(deviation), segment, bound)[segment]
    return GroupStatistics(deviation, std, spread, jnp.asarray(group.size))


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
    group_std: str = "sample",
) -> Float[Array, "responses tokens"]:
    """GRPO: `A_i = (R_i - mean) / (std + std_epsilon)` within the prompt group.

    The same for every token of response i and 0 outside `mask`. Exactly 0 in a group without reward variance
    (`zero_variance_groups`). No gradient flows through it.

    Args:
      group_std: `sample`: std with n - 1. `population`: with n, as ResT writes it.

    Raises:
      UserError: an unknown `group_std`.

    Source:
      2402.03300, section 4.1.2 (outcome supervision); ResT, 2509.21826, Eq. 15.
    """
    check_choice("group_std", group_std, GROUP_STDS)
    statistics = group_statistics(rewards, groups)
    std = statistics.std
    if group_std == "population":
        std = std * jnp.sqrt((statistics.size - 1) / statistics.size)
    return _on_tokens(statistics.deviation / (std + std_epsilon), mask)


def dr_grpo(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
) -> Float[Array, "responses tokens"]:
    """Dr.GRPO: `A_i = R_i - mean` within the prompt group, not divided by the standard deviation.

    The same for every token of response i and 0 outside `mask`. No gradient flows through it.

    Source:
      2503.20783.
    """
    return _on_tokens(group_statistics(rewards, groups).deviation, mask)
