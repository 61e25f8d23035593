"""The counts of a distillation run: one pass over its outcomes, in memory that does not grow with their number.

The samples that the report shows (ten trajectories, three examples per reason) are those with the smallest hashes of their
ids, so they do not depend on the order of the outcomes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappush, heapreplace
from typing import Any, NamedTuple

from dcore_jax.calls import split_thought
from dcore_jax.distill.sample import Outcome

STAGES = ("label", "decompose", "count", "reason", "act", "compose", "verify")  # in a sample's order
DONE = "done"
TRAJECTORIES = 10
EXAMPLES = 3  # of each reason
MAX_REASONS = 500  # distinct ones; further ones are counted together as OTHER
OTHER = "other reasons"


class Reason(NamedTuple):
    """Why a sample was rejected, and at which stage."""

    stage: str
    text: str


@dataclass
class HashSample:
    """A sample of outcomes that does not depend on their order: the `size` ones with the smallest hashes of their ids."""

    size: int
    heap: list[tuple[int, str, Outcome]] = field(
        default_factory=list
    )  # the largest hash first, hence negative

    def add(self, outcome: Outcome) -> None:
        """Takes an outcome into account; one with an id that is kept already changes nothing."""
        digest = hashlib.sha256(f"shown {outcome.sample.id}".encode()).digest()
        entry = (-int.from_bytes(digest[:8], "big"), outcome.sample.id, outcome)
        if any(entry[:2] == other[:2] for other in self.heap):
            return
        if len(self.heap) < self.size:
            heappush(self.heap, entry)
        elif entry[0] > self.heap[0][0]:
            heapreplace(self.heap, entry)

    def outcomes(self) -> list[Outcome]:
        """The kept outcomes, by their hashes."""
        return [outcome for _, _, outcome in sorted(self.heap, key=lambda entry: (-entry[0], entry[1]))]


@dataclass
class LengthHistogram:
    """Lengths counted in bins of doubling width: bin b holds 2**(b-1) to 2**b - 1, bin 0 holds 0."""

    bins: Counter[int] = field(default_factory=Counter)
    total: int = 0
    count: int = 0
    longest: int = 0

    def add(self, length: int) -> None:
        """Counts one length."""
        self.bins[length.bit_length()] += 1
        self.total += length
        self.count += 1
        self.longest = max(self.longest, length)

    @property
    def mean(self) -> float:
        """The mean length; 0 without any."""
        return self.total / self.count if self.count else 0.0


@dataclass
class OutcomeCounts:
    """The outcomes of a group of samples, by stage; `done` counts the accepted ones."""

    by_stage: Counter[str] = field(default_factory=Counter)
    # Samples with subtasks that passed the count check; one whose calls cannot be answered is never decomposed.
    decomposed: int = 0

    @property
    def samples(self) -> int:
        """All samples of the group."""
        return self.by_stage.total()

    @property
    def accepted(self) -> int:
        """Those that made records."""
        return self.by_stage[DONE]

    @property
    def rate(self) -> float:
        """The share of accepted samples; 0 without any sample."""
        return self.accepted / self.samples if self.samples else 0.0


@dataclass
class Summary:
    """The counts of a run."""

    overall: OutcomeCounts = field(default_factory=OutcomeCounts)
    by_kind: dict[str, OutcomeCounts] = field(default_factory=dict)
    by_source: dict[str, OutcomeCounts] = field(default_factory=dict)
    reasons: Counter[Reason] = field(default_factory=Counter)
    examples: dict[Reason, HashSample] = field(default_factory=dict)
    subtasks: Counter[int] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    records: int = 0
    turn_characters: LengthHistogram = field(default_factory=LengthHistogram)  # of composed turns
    thought_characters: LengthHistogram = field(default_factory=LengthHistogram)  # of the thoughts in them
    tokens_per_sample: LengthHistogram = field(default_factory=LengthHistogram)  # generated, accepted or not
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    generated_tokens: Counter[str] = field(default_factory=Counter)
    trajectories: HashSample = field(default_factory=lambda: HashSample(TRAJECTORIES))

    def add(self, outcome: Outcome) -> None:
        """Counts one outcome."""
        sample = outcome.sample
        stage = DONE if outcome.accepted else outcome.stage
        of_kind = self.by_kind.setdefault(sample.kind, OutcomeCounts())
        of_source = self.by_source.setdefault(sample.source, OutcomeCounts())
        decomposed = bool(outcome.subtasks) and stage not in STAGES[: STAGES.index("reason")]
        for counts in (self.overall, of_kind, of_source):
            counts.by_stage[stage] += 1
            counts.decomposed += decomposed
        self.attempts[outcome.attempts] += 1
        self.prompt_tokens.update(outcome.prompt_tokens)
        self.generated_tokens.update(outcome.generated_tokens)
        self.tokens_per_sample.add(sum(outcome.generated_tokens.values()))
        if outcome.accepted:
            self._accept(outcome)
        else:
            self._reject(outcome)

    def passed(self, stage: str) -> int:
        """Samples that were not rejected at `stage` or before; a stage that a kind does not have counts as passed."""
        last = STAGES.index(stage)
        return self.overall.samples - sum(self.overall.by_stage[name] for name in STAGES[: last + 1])

    def stages(self) -> list[str]:
        """The stages that rejected samples, in their order; unknown ones last, by name."""
        rejecting = {stage for stage, count in self.overall.by_stage.items() if count and stage != DONE}
        return [stage for stage in STAGES if stage in rejecting] + sorted(rejecting - set(STAGES))

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
        self.trajectories.add(outcome)

    def _reject(self, outcome: Outcome) -> None:
        reason = Reason(outcome.stage, outcome.reason)
        if reason not in self.reasons and len(self.reasons) >= MAX_REASONS:
            reason = Reason(outcome.stage, OTHER)
        self.reasons[reason] += 1
        self.examples.setdefault(reason, HashSample(EXAMPLES)).add(outcome)


def summarise(outcomes: Iterable[Outcome]) -> Summary:
    """Counts outcomes, one at a time."""
    summary = Summary()
    for outcome in outcomes:
        summary.add(outcome)
    return summary


def composed_turn(record: dict[str, Any]) -> str:
    """The text of the record's last message; empty where it has none."""
    messages = record.get("messages") or [{}]
    return str(messages[-1].get("content") or "")
