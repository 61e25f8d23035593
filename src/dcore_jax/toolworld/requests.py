"""Requests: plans with values for their slots, and how those of a task are drawn."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, draw_distinct, pick

_TEST_SHARE = 5  # one request in five belongs to the test split
_MIXED_CHAINS = (2, 3)  # calls of the chain of a mixed task
_ATTEMPTS = 1000  # every fifth draw is of the test split: 1000 misses in a row are a bug


@dataclass(frozen=True)
class Request:
    """A plan with values for its slots; `absent` is a slot that the request leaves out."""

    family: ToolFamily
    plan: Plan
    values: dict[str, JSON]
    absent: str = ""

    @property
    def content(self) -> str:
        """The request in its first wording: the same for every wording of the same request."""
        return self.text(self.plan.requests[0])

    def text(self, wording: str) -> str:
        """The request in one of its plan's wordings."""
        if self.absent:
            kind = slot_type(self.absent)
            slot = re.escape(f"{{{self.absent}}}")
            wording = re.sub(rf"\b{kind} {slot}|{slot} {kind}\b|{slot}", f"some {kind}", wording)
        return wording.format(**self.values)


@dataclass(frozen=True)
class Rule:
    """A policy with its value, and whether the task's request is the one that it forbids."""

    policy: Policy
    value: JSON
    forbids: bool

    @property
    def text(self) -> str:
        """The rule in words."""
        return self.policy.wording.format(**{self.policy.slot: self.value})


@dataclass(frozen=True)
class Drawn:
    """What a task asks, in the order of its query, after what its history asked."""

    family: ToolFamily
    kind: str
    requests: tuple[Request, ...]
    history: tuple[Request, ...] = ()
    rule: Rule | None = None

    def wanted(self) -> dict[str, list[JSON]]:
        """All values that are named, by slot type."""
        wanted: dict[str, list[JSON]] = {}
        for request in (*self.history, *self.requests):
            for slot, value in request.values.items():
                wanted.setdefault(slot_type(slot), []).append(value)
        if self.rule is not None:
            known = wanted.setdefault(self.rule.policy.slot, [])
            if self.rule.value not in known:
                known.append(self.rule.value)
        return wanted


@dataclass
class Drawing:
    """The drawing of one task's requests: no two slots of a type share a value, so that requests do not affect one another."""

    rng: Random
    family: ToolFamily
    others: Sequence[ToolFamily]  # whose requests may be asked of this family, which cannot serve them
    held_out_wordings: bool
    taken: dict[str, list[JSON]] = field(default_factory=dict)

    def draw(self, kind: str, number: int, *, policy: bool) -> Drawn:
        """A task's requests of that kind and number of calls, under a rule with `policy`."""
        if policy and kind == "irrelevant" and self.rng.random() < 0.5:
            return self._forbidden()
        if kind == "irrelevant":
            requests = [self._foreign()]
        elif kind == "missing":
            requests = [self._missing()]
        else:
            requests = [self.request(plan) for plan in self._plans(kind, number)]
        return Drawn(self.family, kind, tuple(requests), rule=self._unbroken(requests) if policy else None)

    def with_history(self, drawn: Drawn, count: int, side: str | None) -> Drawn:
        """The same after `count` single requests, each of them of that side of train and test (None: of either)."""
        history = []
        for _ in range(count):
            request = self._single(side)
            self._take(request.values)
            history.append(request)
        return replace(drawn, history=tuple(history))

    def request(self, plan: Plan, family: ToolFamily | None = None) -> Request:
        """The plan with values that no other request has."""
        family = family or self.family
        values = self._values(family, plan)
        self._take(values)
        return Request(family, plan, values)

    def _single(self, side: str | None) -> Request:
        for _ in range(_ATTEMPTS):
            plan = pick(self.rng, self._of_length(1))
            request = Request(self.family, plan, self._values(self.family, plan))
            if side is None or side_of([request.content]) == side:
                return request
        raise RuntimeError(f"no {side} request found for a history of family {self.family.name}")

    def _plans(self, kind: str, number: int) -> list[Plan]:
        lengths = [1] * number
        if kind == "sequential":
            lengths = pick(self.rng, _chains(number, self._lengths() - {1}))
        elif kind == "mixed":
            chain = pick(self.rng, [length for length in _MIXED_CHAINS if length < number])
            plans = [pick(self.rng, self._of_length(1)) for _ in range(number - chain)]
            dependent = [plan for plan in self._of_length(chain) if is_dependent(plan)]
            plans.insert(int(self.rng.random() * (len(plans) + 1)), pick(self.rng, dependent))
            return plans
        return [pick(self.rng, self._of_length(length)) for length in lengths]

    def _foreign(self) -> Request:
        borrowed = [(plan, family) for family in self.others for plan in family.plans if len(plan.steps) == 1]
        choices = [*((plan, self.family) for plan in self.family.foreign), *borrowed]
        return self.request(*pick(self.rng, [found for found in choices if self._usable(found[0])]))

    def _missing(self) -> Request:
        request = self.request(pick(self.rng, [*self._of_length(1), *self._of_length(2)]))
        absent = pick(self.rng, list(request.plan.slots))
        values = {slot: value for slot, value in request.values.items() if slot != absent}
        return Request(self.family, request.plan, values, absent)

    def _forbidden(self) -> Drawn:
        rules = [
            (rule, plan)
            for rule in self.family.policies
            for plan in self._of_length(1)
            if _breaks(plan, rule)
        ]
        policy, plan = pick(self.rng, rules)
        request = self.request(plan)
        return Drawn(
            self.family, "irrelevant", (request,), rule=Rule(policy, request.values[policy.slot], True)
        )

    def _unbroken(self, requests: Sequence[Request]) -> Rule:
        """A rule that no request breaks; half of the time about a value that one of them names."""
        policy = pick(self.rng, self.family.policies)
        named = [
            value
            for request in requests
            if request.family is self.family and not any(s.tool == policy.tool for s in request.plan.steps)
            for slot, value in request.values.items()
            if slot_type(slot) == policy.slot
        ]
        if named and self.rng.random() < 0.5:
            return Rule(policy, pick(self.rng, named), False)
        taken = self.taken.setdefault(policy.slot, [])
        value = draw_distinct(self.rng, self.family.values[policy.slot], 1, taken)[0]
        taken.append(value)
        return Rule(policy, value, False)

    def _usable(self, plan: Plan) -> bool:
        return bool(plan.wordings(held_out=self.held_out_wordings))

    def _of_length(self, length: int) -> list[Plan]:
        return [plan for plan in self.family.plans if len(plan.steps) == length and self._usable(plan)]

    def _lengths(self) -> set[int]:
        return {len(plan.steps) for plan in self.family.plans if self._usable(plan)}

    def _values(self, family: ToolFamily, plan: Plan) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for slot in plan.slots:
            kind = slot_type(slot)
            used = [*self.taken.get(kind, ()), *(v for s, v in values.items() if slot_type(s) == kind)]
            values[slot] = draw_distinct(self.rng, family.values[kind], 1, used)[0]
        return values

    def _take(self, values: dict[str, Any]) -> None:
        for slot, value in values.items():
            self.taken.setdefault(slot_type(slot), []).append(value)


def slot_type(slot: str) -> str:
    """The type of a slot: `folder` of `folder2`."""
    return slot.rstrip("0123456789")


def is_dependent(plan: Plan) -> bool:
    """Whether every step after the first needs an output."""
    return all(any(isinstance(value, Output) for value in step.arguments.values()) for step in plan.steps[1:])


def side_of(contents: Iterable[str]) -> str:
    """`train` or `test`, from requests in their first wording; their order does not matter."""
    digest = hashlib.sha256("\n".join(sorted(contents)).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _TEST_SHARE == 0 else "train"


def _breaks(plan: Plan, rule: Policy) -> bool:
    return plan.steps[0].tool == rule.tool and rule.slot in plan.slots


def _chains(number: int, lengths: set[int]) -> list[list[int]]:
    """All ordered sums of these chain lengths that make `number` calls: 5 is 2 + 3 or 3 + 2."""
    if number == 0:
        return [[]]
    return [[n, *rest] for n in sorted(lengths) if n <= number for rest in _chains(number - n, lengths)]
