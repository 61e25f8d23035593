"""What every reward function returns."""

from collections.abc import Mapping
from typing import NamedTuple


class Reward(NamedTuple):
    """A score with its parts.

    Attributes:
      total: the sum of the parts.
      parts: name -> contribution to the total, e.g. `{"format": 1.0, "correctness": -3.0}`.
      error: why the calls of the response could not be read; None when they could.
    """

    total: float
    parts: Mapping[str, float]
    error: str | None = None


def sum_of(parts: Mapping[str, float], error: str | None) -> Reward:
    """A `Reward` whose total is the sum of its parts."""
    return Reward(sum(parts.values()), parts, error)
