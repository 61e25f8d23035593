"""Hammer's irrelevance data (MadeAgents/xlam-irrelevance-7.5k, arXiv 2410.04587): xLAM's format with empty `answers`.

The tool that the query needs was removed, so every record is irrelevant; no refusal is recorded. Hammer's masked
records, in which tools have random names, have the same format, with answers.
"""

from typing import Any

from dcore_jax.distill.seeds import xlam
from dcore_jax.distill.seeds.conversation import Conversation


def conversation(row: dict[str, Any], origin: str) -> Conversation:
    """The conversation of a Hammer record. Raises `Malformed` with the reason."""
    return xlam.conversation(row, origin, source="hammer")
