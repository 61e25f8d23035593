"""What every reward function returns."""

from collections.abc import Mapping
from typing import NamedTuple


class Reward(NamedTuple):
    """The score of a response, in parts and as their sum."""

    total: float  # the sum of the parts
    parts: Mapping[str, float]  # name -> contribution to the total, e.g. {"format": 1.0, "correctness": -3.0}
    error: str | None = None  # why the calls of the response could not be parsed; None if they could


def sum_of(parts: Mapping[str, float], error: str | None) -> Reward:
    """A `Reward` whose total is the sum of its parts."""
    return Reward(sum(parts.values()), parts, error)
