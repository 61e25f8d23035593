"""One task of the tool world."""

import json
from dataclasses import dataclass
from typing import Any

from dcore_jax.calls import JSON, Call

# single: one call. sequential: an argument of a later call comes from an earlier output. parallel: independent calls.
# irrelevant: no tool serves the request, or the policy forbids it, so there is no call. missing: a value that the request
# needs is absent, so the answer asks for it. mixed: a chain beside independent calls.
KINDS = ("single", "sequential", "parallel", "irrelevant", "missing", "mixed")
DEFAULT_KINDS = KINDS[:4]  # where none are asked for
# train and test differ by what is asked. The others are held out by what they are named after, and are test data too.
SPLITS = ("train", "test", "families", "names", "wordings", "values")
MAX_SUBTASKS = 5
MAX_DIFFICULTY = 5
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
    initial_state: JSON  # when the query is made, after the history
    final_state: JSON  # after the reference
    subtasks: tuple[str, ...]  # without any value that only the reference knows
    reference: tuple[Call, ...]
    turns: tuple[tuple[int, ...], ...]  # the indices in `reference` of each calling turn, in order
    responses: tuple[str, ...]  # JSON text
    answer: str  # the report, the refusal, or the question for what is missing
    difficulty: int  # 1 to 5, by `difficulty`
    history: tuple[dict[str, Any], ...] = ()  # OpenAI messages before the query
    policy: str = ""  # the system text


def difficulty(kind: str, calls: int, *, distractors: int = 0, history: int = 0, policy: bool = False) -> int:
    """How hard a task is, from 1 to 5: its number of calls (1 where there is none), one more for each of these: values that are
    missing, a chain beside other calls (`mixed`), distractor tools, a history, a policy; at most 5.
    """
    harder = (kind == "missing", kind == "mixed", distractors > 0, history > 0, policy)
    return min(MAX_DIFFICULTY, max(1, calls) + sum(harder))


def output_text(output: JSON) -> str:
    """A tool's output as the model reads it: one line of ASCII JSON."""
    return json.dumps(output)
