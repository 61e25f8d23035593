"""The two types that everything in distillation passes along: what goes in, and how it ended."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dcore_jax.calls import Call

# sequential: the reference calls are made one after the other (a single call is the shortest such chain).
# parallel: several calls in one turn, none needing another's answer. irrelevant: no call serves the query.
# report: the tools have answered, and the turn tells the user so.
Kind = Literal["sequential", "parallel", "irrelevant", "report"]
KINDS: tuple[Kind, ...] = ("sequential", "parallel", "irrelevant", "report")


@dataclass(frozen=True)
class SeedSample:
    """One assistant turn of a seed dataset: P, T, C, Q, Y* and the tools' recorded answers (section 3.1).

    `history` holds OpenAI-style messages (`role`, `content`, `tool_calls` with `arguments` as dicts) before the
    query; for a report it also holds the query's own calls and their responses. `task` is the tool-world `Task`
    (or another environment's) that `execute` acts in; None where only recorded responses exist.
    """

    id: str  # a hash of the content: equal samples have equal ids
    source: str  # toolace, xlam, apigen_mt, hammer, rlla, jsonl, toolworld
    origin: str  # file:line, counted from 1
    kind: Kind
    policy: str  # the system prompt's text without its tool list; may be empty
    tools: tuple[dict[str, Any], ...]  # OpenAI function schemas
    history: tuple[dict[str, Any], ...]
    query: str
    reference: tuple[Call, ...]  # Y*; empty for irrelevant and report
    responses: tuple[str, ...]  # recorded, one per reference call; empty where the source records none
    answer: str = ""  # the recorded text of the turn: the refusal, or the report
    task: Any = None


@dataclass(frozen=True)
class Outcome:
    """How one seed sample ended."""

    sample: SeedSample
    # The last it reached: label, decompose, count, reason, act, compose, verify; done when accepted.
    stage: str
    reason: str  # why it was rejected; empty when accepted
    attempts: int
    subtasks: tuple[str, ...] = ()
    # Chat records that train_sft.py reads; several for a sequential sample, none when rejected.
    records: tuple[dict[str, Any], ...] = ()
    prompt_tokens: dict[str, int] = field(default_factory=dict)  # by stage
    generated_tokens: dict[str, int] = field(default_factory=dict)  # by stage
    last_text: str = ""  # what the model said where it failed, cut to 2,000 characters

    @property
    def accepted(self) -> bool:
        return not self.reason
