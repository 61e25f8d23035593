"""Hammer's irrelevance data (MadeAgents/xlam-irrelevance-7.5k, arXiv 2410.04587): xLAM's form, `answers` empty.

The tool that the query needs was taken out, so every record is irrelevant; no refusal is recorded. Hammer's masked
records, with random names in place of the tools' own, have the same form, and answers.
"""

from typing import Any

from dcore_jax.distill.seeds import xlam
from dcore_jax.distill.seeds.conversation import Conversation


def conversation(row: dict[str, Any], origin: str) -> Conversation:
    """A Hammer record. Raises `Malformed` with the reason."""
    return xlam.conversation(row, origin, source="hammer")
