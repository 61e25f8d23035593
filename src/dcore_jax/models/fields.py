"""Single fields of a `config.json`, checked: a value of the wrong type is a UserError that names the field."""

from collections.abc import Mapping
from typing import Any

from dcore_jax.errors import UserError

_MOST = 2**31 - 1  # of a size; arrays are indexed by 32 bits
_LARGEST = 1e38  # of a number; the network computes in float32


def size_field(fields: Mapping[str, Any], name: str) -> int:
    if name not in fields:
        raise UserError(f"field {name!r} is missing")
    return whole_number(name, fields[name])


def whole_number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise UserError(f"field {name}={shown(value)} is not a positive whole number")
    return value


def decimal_field(fields: Mapping[str, Any], name: str, default: float, *, zero: bool = False) -> float:
    """A field that transformers reads as a float, and refuses as a whole number."""
    value = fields.get(name, default)
    if not isinstance(value, float):
        raise UserError(f"field {name}={shown(value)} is not a decimal number")
    return positive_number(name, value, zero=zero)


def positive_number(name: str, value: Any, *, zero: bool = False) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= _LARGEST or (value == 0 and not zero):
        raise UserError(f"field {name}={shown(value)} is not a number {'of at least' if zero else 'above'} 0")
    return float(value)


def flag_field(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"field {name}={shown(value)} is neither true nor false")
    return value


def shown(value: Any) -> str:
    """A value in a message: in one line, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
