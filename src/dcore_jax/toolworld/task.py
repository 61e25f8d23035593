"""One task of the tool world."""

import json
from dataclasses import dataclass
from typing import Any

from dcore_jax.calls import JSON, Call

# single: one call. sequential: an argument of a later call comes from an earlier output. parallel: the
# calls do not depend on one another. irrelevant: no tool serves the request, so there is no call.
KINDS = ("single", "sequential", "parallel", "irrelevant")
SPLITS = ("train", "test")
MAX_SUBTASKS = 5
REFUSAL = "no tool here can do this."


@dataclass(frozen=True)
class Task:
    """A request, the state it is made in, and how it is served.

    `reference[i]` serves `subtasks[i]` and gave `responses[i]` (JSON text) when it was run, in this order,
    on the initial state. A subtask's words hold no value that only the reference knows. `id` is a hash of
    the content: equal ids are equal tasks.
    """

    id: str
    family: str
    kind: str
    tools: tuple[dict[str, Any], ...]
    query: str
    initial_state: JSON
    subtasks: tuple[str, ...]
    reference: tuple[Call, ...]
    responses: tuple[str, ...]
    answer: str


def output_text(output: JSON) -> str:
    """A tool's output as the model reads it: one line of ASCII JSON."""
    return json.dumps(output)
