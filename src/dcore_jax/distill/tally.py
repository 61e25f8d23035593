"""What a distillation run counts: one pass over its outcomes, in memory that does not grow with their number.

What is shown of single samples (ten trajectories, three examples a reason) is chosen by a hash of their ids, so
the order in which outcomes arrive changes nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappush, heapreplace
from typing import Any, NamedTuple

from dcore_jax.calls import split_thought
from dcore_jax.distill.sample import Outcome

STAGES = (
    "label",
    "decompose",
    "count",
    "reason",
    "act",
    "compose",
    "verify",
)  # in the order a sample passes them
DONE = "done"
TRAJECTORIES = 10
EXAMPLES = 3  # of each reason
MAX_REASONS = 500  # distinct ones; further ones are counted together
OTHER = "other reasons"


class Reason(NamedTuple):
    """Why a sample was rejected, and at which stage."""

    stage: str
    text: str


@dataclass
class Chosen:
    """The `size` outcomes with the smallest hashes of their ids, whatever order they come in."""

    size: int
    heap: list[tuple[int, str, Outcome]] = field(default_factory=list)

    def offer(self, outcome: Outcome) -> None:
        digest = hashlib.sha256(f"shown {outcome.sample.id}".encode()).digest()
        entry = (-int.from_bytes(digest[:8], "big"), outcome.sample.id, outcome)
        if any(entry[:2] == other[:2] for other in self.heap):
            return
        if len(self.heap) < self.size:
            heappush(self.heap, entry)
        elif entry[0] > self.heap[0][0]:
            heapreplace(self.heap, entry)

    def outcomes(self) -> list[Outcome]:
        return [outcome for _, _, outcome in sorted(self.heap, key=lambda entry: (-entry[0], entry[1]))]


@dataclass
class Lengths:
    """Counts of lengths in bins that double: bin b holds 2**(b-1) to 2**b - 1, bin 0 holds 0."""

    bins: Counter[int] = field(default_factory=Counter)
    total: int = 0
    count: int = 0
    longest: int = 0

    def add(self, length: int) -> None:
        self.bins[length.bit_length()] += 1
        self.total += length
        self.count += 1
        self.longest = max(self.longest, length)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass
class Ends:
    """How a group of samples ended: by stage, `done` for the accepted ones."""

    by_stage: Counter[str] = field(default_factory=Counter)
    # With subtasks that passed the count; a sample that cannot be answered is asked for none.
    decomposed: int = 0

    @property
    def samples(self) -> int:
        return self.by_stage.total()

    @property
    def accepted(self) -> int:
        return self.by_stage[DONE]

    @property
    def rate(self) -> float:
        return self.accepted / self.samples if self.samples else 0.0


@dataclass
class Summary:
    """The counts of a run. Lengths in characters are of composed turns, in tokens of all that one sample cost."""

    ends: Ends = field(default_factory=Ends)
    by_kind: dict[str, Ends] = field(default_factory=dict)
    by_source: dict[str, Ends] = field(default_factory=dict)
    reasons: Counter[Reason] = field(default_factory=Counter)
    examples: dict[Reason, Chosen] = field(default_factory=dict)
    subtasks: Counter[int] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    records: int = 0
    turn_characters: Lengths = field(default_factory=Lengths)
    thought_characters: Lengths = field(default_factory=Lengths)
    tokens_per_sample: Lengths = field(default_factory=Lengths)
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    generated_tokens: Counter[str] = field(default_factory=Counter)
    trajectories: Chosen = field(default_factory=lambda: Chosen(TRAJECTORIES))

    def add(self, outcome: Outcome) -> None:
        sample = outcome.sample
        stage = DONE if outcome.accepted else outcome.stage
        of_kind, of_source = (
            self.by_kind.setdefault(sample.kind, Ends()),
            self.by_source.setdefault(sample.source, Ends()),
        )
        for ends in (self.ends, of_kind, of_source):
            ends.by_stage[stage] += 1
            ends.decomposed += bool(outcome.subtasks) and stage not in STAGES[: STAGES.index("reason")]
        self.attempts[outcome.attempts] += 1
        self.prompt_tokens.update(outcome.prompt_tokens)
        self.generated_tokens.update(outcome.generated_tokens)
        self.tokens_per_sample.add(sum(outcome.generated_tokens.values()))
        if outcome.accepted:
            self._accept(outcome)
        else:
            self._reject(outcome)

    def passed(self, stage: str) -> int:
        """Samples that were not rejected at `stage` or before: what a kind never meets counts as passed."""
        last = STAGES.index(stage)
        return self.ends.samples - sum(self.ends.by_stage[name] for name in STAGES[: last + 1])

    def stages(self) -> list[str]:
        """The stages at which something ended, in their order; unknown ones last, by name."""
        met = {stage for stage, count in self.ends.by_stage.items() if count and stage != DONE}
        return [stage for stage in STAGES if stage in met] + sorted(met - set(STAGES))

    def ordered_reasons(self) -> list[tuple[Reason, int]]:
        """The reasons, the most frequent first."""
        return sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))

    def _accept(self, outcome: Outcome) -> None:
        self.subtasks[len(outcome.subtasks)] += 1
        self.records += len(outcome.records)
        for record in outcome.records:
            text = composed_turn(record)
            self.turn_characters.add(len(text))
            self.thought_characters.add(len(split_thought(text)[0] or ""))
        self.trajectories.offer(outcome)

    def _reject(self, outcome: Outcome) -> None:
        reason = Reason(outcome.stage, outcome.reason)
        if reason not in self.reasons and len(self.reasons) >= MAX_REASONS:
            reason = Reason(outcome.stage, OTHER)
        self.reasons[reason] += 1
        self.examples.setdefault(reason, Chosen(EXAMPLES)).offer(outcome)


def summarise(outcomes: Iterable[Outcome]) -> Summary:
    """Count outcomes, one at a time."""
    summary = Summary()
    for outcome in outcomes:
        summary.add(outcome)
    return summary


def composed_turn(record: dict[str, Any]) -> str:
    """The text of the record's last message; empty where it has none."""
    messages = record.get("messages") or [{}]
    return str(messages[-1].get("content") or "")
