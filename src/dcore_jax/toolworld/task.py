"""One task of the tool world."""

import json
from dataclasses import dataclass
from typing import Any

from dcore_jax.calls import JSON, Call

# single: one call. sequential: an argument of a later call comes from an earlier output. parallel: independent calls.
# irrelevant: no tool serves the request, so there is no call.
KINDS = ("single", "sequential", "parallel", "irrelevant")
SPLITS = ("train", "test")
MAX_SUBTASKS = 5
REFUSAL = "no tool here can do this."


@dataclass(frozen=True)
class Task:
    """A request, the state in which it is made, and the reference calls that serve it.

    `reference[i]` serves `subtasks[i]` and returned `responses[i]` when the reference was run, in this order, on the
    initial state.
    """

    id: str  # a hash of the content: equal ids are equal tasks
    family: str
    kind: str  # of KINDS
    tools: tuple[dict[str, Any], ...]  # OpenAI function schemas
    query: str
    initial_state: JSON
    subtasks: tuple[str, ...]  # without any value that only the reference knows
    reference: tuple[Call, ...]
    responses: tuple[str, ...]  # JSON text
    answer: str  # the report, or the refusal


def output_text(output: JSON) -> str:
    """A tool's output as the model reads it: one line of ASCII JSON."""
    return json.dumps(output)
