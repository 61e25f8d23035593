"""Ratios of lazy thoughts by group, and what the figures need of each thought."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dcore_jax.evaluation.lazy_reasoning.behaviours import BEHAVIOURS, Behaviour, count_behaviours
from dcore_jax.evaluation.lazy_reasoning.thoughts import Thought, Thoughts
from dcore_jax.evaluation.lazy_reasoning.tokens import Counter as TokenCounter
from dcore_jax.report import Count
from dcore_jax.rewards import count_reflections, is_lazy

Rule = Literal["release", "paper"]
# Groups of the paper (appendix A.2.2) and the categories of BFCL that make them.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "parallel": ("parallel", "live_parallel"),
    "irrelevance": ("irrelevance", "live_irrelevance"),
    "multi_turn": ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param"),
}
# In percent; from the README of D-CORE's release.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "Qwen3-8B (published)": {"parallel": 3.7, "irrelevance": 9.1, "multi_turn": 45.1},
    "D-CORE-14B (published)": {"parallel": 5.1, "irrelevance": 5.5, "multi_turn": 6.8},
}


@dataclass(frozen=True)
class Measured:
    """A thought with its numbers.

    Args:
      reflections: as the rule counts them: the release's as substrings, the paper's as whole words.
    """

    thought: Thought
    tokens: int
    reflections: int
    lazy: bool
    behaviours: Counter[Behaviour]


@dataclass(frozen=True)
class LazyReport:
    """What `dcore lazy` found.

    Args:
      groups: by group, its categories' thoughts.
    """

    model: str
    rule: Rule
    groups: Mapping[str, tuple[Measured, ...]]
    categories: Mapping[str, tuple[Measured, ...]]
    notes: tuple[str, ...]

    def ratio(self, name: str) -> Count:
        """Lazy thoughts of a group's thoughts."""
        return lazy_of(self.groups[name])

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return {
            "model": self.model,
            "rule": self.rule,
            "groups": {name: _ratio(found) for name, found in self.groups.items()},
            "categories": {name: _ratio(found) for name, found in self.categories.items()},
            "behaviours": {name: behaviour_shares(found) for name, found in self.groups.items()},
            "left_out": list(self.notes),
        }


def measure(found: Thoughts, count_tokens: TokenCounter, rule: Rule) -> LazyReport:
    """Counts and judges every thought; groups are the paper's where BFCL's categories are there, else the categories."""
    tokens = count_tokens([thought.text for thought in found.thoughts])
    measured = [
        _measured(thought, number, rule) for thought, number in zip(found.thoughts, tokens, strict=True)
    ]
    categories: dict[str, list[Measured]] = {}
    for one in measured:
        categories.setdefault(one.thought.category, []).append(one)
    notes = list(found.notes)
    groups = {}
    for name, members in GROUPS.items():
        there = [member for member in members if member in categories]
        if there and len(there) < len(members):
            notes.append(f"{name}: only of {', '.join(there)}; the paper's group is {', '.join(members)}")
        if there:
            groups[name] = tuple(one for member in there for one in categories[member])
    by_category = {name: tuple(ones) for name, ones in categories.items()}
    return LazyReport(found.model, rule, groups or by_category, by_category, tuple(notes))


def lazy_of(measured: Sequence[Measured]) -> Count:
    """Lazy ones of some thoughts."""
    return Count(sum(one.lazy for one in measured), len(measured))


def behaviour_shares(measured: Sequence[Measured]) -> dict[str, float]:
    """Shares of sentences by behaviour over all thoughts together."""
    counts = sum((one.behaviours for one in measured), Counter[Behaviour]())
    whole = counts.total() or 1
    return {behaviour: counts[behaviour] / whole for behaviour in BEHAVIOURS}


def share_beyond(
    measured: Sequence[Measured], tokens: int, reflections: int, *, wrong_only: bool = False
) -> float:
    """Share of thoughts that are longer than `tokens` and hold at least `reflections` (Figure 10)."""
    hits = [
        one.tokens > tokens and one.reflections >= reflections and not (wrong_only and one.thought.correct)
        for one in measured
    ]
    return sum(hits) / len(hits) if hits else 0.0


def _measured(thought: Thought, tokens: int, rule: Rule) -> Measured:
    matching = "substring" if rule == "release" else "word"
    reflections = count_reflections(thought.text, matching=matching)
    lazy = is_lazy(reflections, tokens, correct=thought.correct, preset=rule)
    return Measured(thought, tokens, reflections, lazy, count_behaviours(thought.text))


def _ratio(measured: Sequence[Measured]) -> dict[str, Any]:
    count = lazy_of(measured)
    return {"lazy": count.part, "total": count.whole, "ratio": count.share}
