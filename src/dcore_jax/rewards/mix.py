"""The reward of a run: one or several, presets and functions of the user's own, each with a weight, shown by part."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dcore_jax.calls import CallFormat
from dcore_jax.errors import UserError
from dcore_jax.rewards.custom import LARGEST, CustomReward, is_file_spec, load_reward
from dcore_jax.rewards.entropy import ENTROPY, EntropyReward
from dcore_jax.rewards.rest import RELEASE_STEPS
from dcore_jax.rewards.reward import Reward, RewardInput, sum_of
from dcore_jax.rewards.tool_reward import PRESETS, format_rule, reward_range, tool_reward


class RewardSpec(NamedTuple):
    """A reward as a user names it: `dcore_paper`, `my_rewards.py:score` or either with a weight, `my_rewards.py:score=0.5`."""

    name: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}={self.weight:g}"


def parse_reward_spec(text: str, *, further: Sequence[str] = ()) -> RewardSpec:
    """Reads `name` or `name=weight`; files are not looked at.

    Args:
      further: names that are known beside the presets and `file.py:function`.

    Raises:
      UserError: an unknown name, or a weight that is no finite number other than 0.
    """
    name, equals, tail = text.rpartition("=")
    if not equals or ":" in tail:  # `=` may be part of a file's path
        name, tail = text, "1"
    known = (*further, *PRESETS, ENTROPY)
    if name not in known and not is_file_spec(name):
        hint = "; a file is given with its function, my_rewards.py:score" if name.endswith(".py") else ""
        raise UserError(
            f"reward {name!r} is unknown; choose one of {', '.join(known)}, or my_rewards.py:score{hint}"
        )
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise UserError(f"reward {text}: the weight after = must be a finite number other than 0")
    return RewardSpec(name, weight)


@dataclass(frozen=True)
class PresetReward:
    """A preset of `tool_reward`, as a function of a `RewardInput`."""

    name: str
    beta_accuracy: float = 1.0
    beta_format: float = 1.0

    def __call__(self, given: RewardInput) -> Reward:
        """The reward of one response."""
        return tool_reward(
            given.response,
            given.reference,
            preset=self.name,
            call_format=given.call_format,
            progress=self.progress(given),
            expects_reply=given.expects_reply,
            beta_accuracy=self.beta_accuracy,
            beta_format=self.beta_format,
        )

    @property
    def spec(self) -> str:
        """The name that a user gives it."""
        return self.name

    def progress(self, given: RewardInput) -> float:
        """nu of ResT's rewards: the share of the run that is done; in its release, that of 150 steps."""
        return min(1.0, given.step / RELEASE_STEPS) if self.name == "rest_release" else given.progress

    def range(self, given: RewardInput) -> tuple[float, float]:
        """The lowest and the highest total that a response to this prompt can get."""
        return reward_range(
            self.name,
            expects_calls=bool(given.reference),
            progress=self.progress(given),
            beta_accuracy=self.beta_accuracy,
            beta_format=self.beta_format,
        )


class WeightedReward(NamedTuple):
    """A reward, its weight in a mix, and the name that its parts are shown under."""

    label: str
    function: PresetReward | CustomReward | EntropyReward
    weight: float


@dataclass(frozen=True)
class RewardMix:
    """The weighted sum of one or several rewards.

    The parts of a single reward keep their names; those of several stand behind the reward's label (`dcore_paper.format`), the
    number of a function of one's own under the label alone. Every part is its weighted contribution to the total.
    """

    rewards: tuple[WeightedReward, ...]

    def __call__(self, given: RewardInput) -> Reward:
        """The reward of one response.

        Raises:
          UserError: from a function of the user's own (`CustomReward`); a sum too large for float32.
        """
        parts: dict[str, float] = {}
        for label, function, weight in self.rewards:
            for part, value in function(given).parts.items():
                name = (
                    part if len(self.rewards) == 1 else label if part == function.name else f"{label}.{part}"
                )
                parts[name] = weight * value
        reward = sum_of(parts, given.parsed.error)
        if not abs(reward.total) <= LARGEST:
            raise UserError(
                f"the rewards of {given.origin or 'a response'} add up to {reward.total:g}, beyond {LARGEST:g}; lower the weights"
            )
        return reward

    def __str__(self) -> str:
        return " + ".join(str(RewardSpec(r.function.spec, r.weight)) for r in self.rewards)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward, by the label of its parts."""
        return {reward.label: reward.weight for reward in self.rewards}

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the file of each function of the user's own, by its name as it was given."""
        own = [r.function for r in self.rewards if isinstance(r.function, CustomReward)]
        return {function.spec: function.sha256 for function in own}

    def range(self, given: RewardInput) -> tuple[float, float] | None:
        """The lowest and the highest total that a response to this prompt can get; None where a function of the user's own
        or the entropy is in the mix, whose ranges nobody knows.
        """
        low = high = 0.0
        for _, function, weight in self.rewards:
            if not isinstance(function, PresetReward):
                return None
            ends = [weight * end for end in function.range(given)]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def format_rules(self, call_format: CallFormat) -> dict[str, str]:
        """What the format part of each preset asks for in this notation, in words, by the reward's label."""
        presets = [r for r in self.rewards if isinstance(r.function, PresetReward)]
        return {reward.label: format_rule(reward.function.name, call_format) for reward in presets}


def open_rewards(
    specs: Iterable[str | RewardSpec], *, beta_accuracy: float = 1.0, beta_format: float = 1.0
) -> RewardMix:
    """The sum of these rewards; files of the user's own are executed here.

    Args:
      beta_accuracy, beta_format: the weights of rest_paper's two parts.

    Raises:
      UserError: no reward, one that is named twice, or a mistake that `parse_reward_spec` or `load_reward` tells.
    """
    found = [parse_reward_spec(spec) if isinstance(spec, str) else spec for spec in specs]
    check_different(found)
    labels = _labels([spec.name for spec in found])
    return RewardMix(
        tuple(
            WeightedReward(
                labels[name],
                _opened(name, beta_accuracy, beta_format),
                weight,
            )
            for name, weight in found
        )
    )


def _opened(
    name: str, beta_accuracy: float, beta_format: float
) -> PresetReward | CustomReward | EntropyReward:
    if name == ENTROPY:
        return EntropyReward()
    return load_reward(name) if is_file_spec(name) else PresetReward(name, beta_accuracy, beta_format)


def check_different(specs: Sequence[RewardSpec]) -> None:
    """Raises UserError for an empty list, and for a reward that is named twice."""
    names = [spec.name for spec in specs]
    if not names:
        raise UserError("no reward is named; give a preset or my_rewards.py:score")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"reward {twice} is named twice; name it once, with the sum of the weights")


def _labels(names: Sequence[str]) -> Mapping[str, str]:
    """The shortest of `score`, `my_rewards.score` and the whole name that no other reward has."""
    forms = {name: _forms(name) for name in names}
    labels = {}
    for name, own in forms.items():
        others = {form for other, theirs in forms.items() if other != name for form in theirs}
        labels[name] = next((form for form in own if form not in others), name)
    return labels


def _forms(name: str) -> tuple[str, ...]:
    if not is_file_spec(name):
        return (name,)
    path, _, function = name.rpartition(":")
    return function, f"{Path(path).stem}.{function}", name
