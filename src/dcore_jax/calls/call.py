"""The type every call format parses to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What JSON can hold: None, bool, int, float, str, list and dict with string keys.
JSON = Any


@dataclass(frozen=True)
class Call:
    """One tool call: the tool's name and its arguments by parameter name."""

    name: str
    arguments: Mapping[str, JSON] = field(default_factory=dict)
