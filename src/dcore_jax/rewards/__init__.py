"""Rewards for tool calls: one file per paper; every reward as its parts and their sum."""

from dcore_jax.rewards.custom import CustomReward, load_reward
from dcore_jax.rewards.entropy import EntropyReward
from dcore_jax.rewards.mix import (
    RewardMix,
    RewardSpec,
    WeightedReward,
    check_different,
    open_rewards,
    parse_reward_spec,
)
from dcore_jax.rewards.reflection import REFLECTION_WORDS, RELEASE_REWARD_WORDS, count_reflections, is_lazy
from dcore_jax.rewards.reward import Reward, RewardFunction, RewardInput
from dcore_jax.rewards.tool_reward import PRESETS, format_rule, reward_range, tool_reward

__all__ = [
    "PRESETS",
    "REFLECTION_WORDS",
    "RELEASE_REWARD_WORDS",
    "CustomReward",
    "EntropyReward",
    "Reward",
    "RewardFunction",
    "RewardInput",
    "RewardMix",
    "RewardSpec",
    "WeightedReward",
    "check_different",
    "count_reflections",
    "format_rule",
    "is_lazy",
    "load_reward",
    "open_rewards",
    "parse_reward_spec",
    "reward_range",
    "tool_reward",
]
