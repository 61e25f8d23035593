"""The type that every call format parses to, and equality of calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcore_jax.errors import UserError

# What JSON can hold: None, bool, int, float, str, list and dict with string keys.
JSON = Any
_SCALARS = frozenset({str, int, float, bool})


@dataclass(frozen=True)
class Call:
    """One tool call: the tool's name and its arguments by parameter name."""

    name: str
    arguments: Mapping[str, JSON] = field(default_factory=dict)


def as_calls(reference: Sequence[JSON]) -> tuple[Call, ...]:
    """Calls from a list whose items are `Call` or `{"name": str, "arguments": {...}}`.

    Raises:
      UserError: an item is neither; names the item and the field.
    """
    calls = []
    for i, item in enumerate(reference):
        if isinstance(item, Call):
            calls.append(item)
            continue
        name = item.get("name") if isinstance(item, Mapping) else None
        arguments = item.get("arguments") if isinstance(item, Mapping) else None
        if not isinstance(name, str) or not name:
            raise UserError(f'reference call {i}: "name" must be a non-empty string, found {name!r:.60}')
        if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
            raise UserError(
                f'reference call {i} ({name:.60}): "arguments" must be a mapping from parameter names to '
                f"values, found {arguments!r:.60}; write {{}} for none"
            )
        calls.append(Call(name, dict(arguments)))
    return tuple(calls)


def values_equal(a: JSON, b: JSON) -> bool:
    """Whether two JSON values are equal: numbers by value (1 equals 1.0), and never across types.

    For Python's own `==`, True equals 1; for a comparison of texts, 1 differs from 1.0 and equals "1".
    """
    if type(a) is type(b) and type(a) in _SCALARS:  # the common case first, for speed
        return bool(a == b)
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and isinstance(b, str) and a == b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(values_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(values_equal, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    return False


def calls_equal(predicted: Sequence[Call], reference: Sequence[Call], *, ordered: bool = True) -> bool:
    """Whether two lists hold equal calls in the same order; with `ordered=False` in any order, each call matched once."""
    if len(predicted) != len(reference):
        return False
    if ordered:
        return all(map(_same_call, predicted, reference))
    # Equality is transitive, so matching the first unused equal call never prevents a later match.
    unused = list(predicted)
    for call in reference:
        match = next((i for i, other in enumerate(unused) if _same_call(other, call)), None)
        if match is None:
            return False
        unused.pop(match)
    return True


def _same_call(a: Call, b: Call) -> bool:
    return a.name == b.name and values_equal(a.arguments, b.arguments)
