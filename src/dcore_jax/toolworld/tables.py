"""A family's state as three tables: owners with their entries, entries with fields, and numbers to look up.

`{"users": {user: [order, ...]}, "orders": {order: {"item": ..., "count": ...}}, "items": {item: number}}`; the last entry of an
owner is the one that a tool finds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.family import Draw, draw_distinct, integers, pick
from dcore_jax.toolworld.tool import ToolError

NUMBERS, SMALL = integers(10, 99), integers(1, 9)


@dataclass(frozen=True)
class Tables:
    """The types of a family's values; a table is named after its type with an `s`.

    `named` is the field of an entry whose value is looked up in the third table; `counted` the field that holds a number.
    """

    owner: str
    entry: str
    named: str
    counted: str
    values: Mapping[str, Draw]  # by slot type, for `owner`, `entry`, `named` and `counted`

    def initial_state(self, rng: Random, wanted: Mapping[str, Sequence[JSON]]) -> JSON:
        """A state in which the wanted values exist, and no wanted entry or name is what a tool finds."""
        draw = self.values
        asked_owners, asked_entries = list(wanted.get(self.owner, ())), list(wanted.get(self.entry, ()))
        asked_names = list(wanted.get(self.named, ()))
        owners = asked_owners + draw_distinct(rng, draw[self.owner], 2, asked_owners)
        latest = draw_distinct(rng, draw[self.entry], len(owners), asked_entries)
        held: dict[Any, list[Any]] = {owner: [] for owner in owners}
        for entry in asked_entries:  # never the last one of its owner
            held[pick(rng, owners)].append(entry)
        for owner, entry in zip(owners, latest, strict=True):
            held[owner].append(entry)
        entries = asked_entries + latest
        names = draw_distinct(rng, draw[self.named], len(entries), asked_names)
        return {
            f"{self.owner}s": held,
            f"{self.entry}s": {
                entry: {self.named: name, self.counted: draw[self.counted](rng)}
                for entry, name in zip(entries, names, strict=True)
            },
            f"{self.named}s": {name: NUMBERS(rng) for name in asked_names + names},
        }

    def latest(self, state: Any, owner: str) -> str:
        """The last entry of an owner. Raises ToolError without one."""
        entries = self._row(state, self.owner, owner)
        if not entries:
            raise ToolError(f"{self.owner} {owner} has no {self.entry}")
        return entries[-1]

    def fields(self, state: Any, entry: str) -> dict[str, Any]:
        """The fields of an entry, to read and to change. Raises ToolError for an unknown entry."""
        return self._row(state, self.entry, entry)

    def number(self, state: Any, name: str) -> int:
        """The number of a name. Raises ToolError for an unknown name."""
        return self._row(state, self.named, name)

    def add(self, state: Any, owner: str, entry: str) -> None:
        """Makes an entry the last one of an owner, and takes it from whoever had it. Raises ToolError for unknown ones."""
        self.fields(state, entry)
        entries = self._row(state, self.owner, owner)
        self.remove(state, entry)
        entries.append(entry)

    def remove(self, state: Any, entry: str) -> None:
        """Takes an entry from its owner; its fields stay. Raises ToolError for an unknown entry."""
        self.fields(state, entry)
        for entries in state[f"{self.owner}s"].values():
            if entry in entries:
                entries.remove(entry)

    def change(self, state: Any, entry: str, field: str, value: JSON) -> JSON:
        """Sets a field of an entry. Raises ToolError for an unknown entry, or a number outside 1 to 9."""
        fields = self.fields(state, entry)
        if field == self.counted and not 1 <= value <= 9:
            raise ToolError(f"{field} must be 1 to 9")
        fields[field] = value
        return {"state": "changed"}

    def _row(self, state: Any, kind: str, key: str) -> Any:
        if key not in state[f"{kind}s"]:
            raise ToolError(f"no {kind} {key}")
        return state[f"{kind}s"][key]
