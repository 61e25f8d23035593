"""Rewards for tool calls: one file per paper; every reward as its parts and their sum."""

from dcore_jax.rewards.reflection import REFLECTION_WORDS, RELEASE_REWARD_WORDS, count_reflections, is_lazy
from dcore_jax.rewards.reward import Reward
from dcore_jax.rewards.tool_reward import PRESETS, format_rule, reward_range, tool_reward

__all__ = [
    "PRESETS",
    "REFLECTION_WORDS",
    "RELEASE_REWARD_WORDS",
    "Reward",
    "count_reflections",
    "format_rule",
    "is_lazy",
    "reward_range",
    "tool_reward",
]
