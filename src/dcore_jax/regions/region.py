"""The regions of a response that ResT (arXiv 2509.21826) weights differently."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Region(IntEnum):
    """The part of a response that a token belongs to. The number is the index into every table of region values."""

    OUTSIDE = 0  # free text, replies, padding: anything that is in none of the other four
    FORMAT = 1  # tags, and with punctuation_is_format the call syntax around names and parameters
    NAME = 2  # the tool's name, without quotes
    PARAMETERS = 3  # the arguments: the JSON value, or the text between the parentheses of a Python call
    THINKING = 4  # the text between <think> and </think>


class Span(NamedTuple):
    """Bytes `start` to `end` (exclusive) of a response's UTF-8 text belong to `region`."""

    start: int
    end: int
    region: Region


@dataclass(frozen=True)
class RegionRules:
    """Rules on which the paper's text and the authors' released code differ."""

    all_calls: bool = True
    """Mark every call of a block; otherwise only the first, as the released code's search does."""
    punctuation_is_format: bool = True
    """Braces, keys, commas and line breaks that the call syntax needs are FORMAT; otherwise only tags are."""


PAPER_RULES = RegionRules(all_calls=True, punctuation_is_format=True)
RELEASE_RULES = RegionRules(all_calls=False, punctuation_is_format=False)


@dataclass(frozen=True)
class RegionValues:
    """One number for each region: initial weights, rates of change, or ceilings."""

    outside: float = 0.0
    """For tokens that belong to no other region."""
    format: float = 0.0
    """For tags and call syntax."""
    name: float = 0.0
    """For tool names."""
    parameters: float = 0.0
    """For arguments of calls."""
    thinking: float = 0.0
    """For the thought."""

    def table(self) -> tuple[float, float, float, float, float]:
        """The values in the order of `Region`, for indexing by region."""
        return (self.outside, self.format, self.name, self.parameters, self.thinking)
