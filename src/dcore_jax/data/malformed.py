"""What a record that cannot be used is reported as, and JSON text inside a record."""

import json
from typing import Any


class Malformed(ValueError):
    """A record that cannot be used; its message is the reason under which it is counted."""


def decode_json(value: Any, reason: str) -> Any:
    """The value of JSON text; what is not text comes back as it is. Raises `Malformed` with the reason given."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Malformed(reason) from None
