"""The input and output types of distillation: a seed sample, and its outcome."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dcore_jax.calls import Call

# sequential: the reference calls are made one after the other (a single call is the shortest such chain).
# parallel: several independent calls in one turn. irrelevant: no call serves the query.
# missing: a value that the calls need is absent, and the answer asks for it.
# mixed: a chain of turns of which some hold several independent calls.
# report: the tools have answered, and the turn reports to the user.
Kind = Literal["sequential", "parallel", "irrelevant", "report", "missing", "mixed"]
KINDS: tuple[Kind, ...] = ("sequential", "parallel", "irrelevant", "report", "missing", "mixed")


@dataclass(frozen=True)
class SeedSample:
    """One assistant turn of a seed data set: P, T, C, Q, Y* and the tools' recorded responses (D-CORE section 3.1).

    `history` holds the OpenAI-style messages (`role`, `content`, `tool_calls` with `arguments` as dicts) before the
    query; for a report it also holds the query, its calls and their responses. `task` is the tool-world `Task`
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
    turns: tuple[tuple[int, ...], ...] = ()  # of a mixed sample: the calls of each turn, by index


@dataclass(frozen=True)
class Outcome:
    """The result of one seed sample: its records, or where and why it was rejected."""

    sample: SeedSample
    # The last stage it reached: label, decompose, count, reason, act, compose, verify; done when accepted.
    stage: str
    reason: str  # why it was rejected; empty when accepted
    attempts: int
    subtasks: tuple[str, ...] = ()
    # Chat records for SFT; several for a sequential or a mixed sample, none when rejected.
    records: tuple[dict[str, Any], ...] = ()
    prompt_tokens: dict[str, int] = field(default_factory=dict)  # by stage
    generated_tokens: dict[str, int] = field(default_factory=dict)  # by stage
    last_text: str = ""  # the model's text where it failed, cut to 2,000 characters

    @property
    def accepted(self) -> bool:
        """Whether the sample made records."""
        return not self.reason
