"""Limits on the size and depth of calls: model output is untrusted, so it is checked before use."""

import math
import re

from dcore_jax.calls.call import JSON

MAX_CHARACTERS = 65_536  # of the calls of one response, as text
MAX_CALLS = 256  # in one response
MAX_DEPTH = 32  # of lists and mappings inside one argument
MAX_VALUES = 4_096  # scalars and containers inside the arguments of one response, together
MAX_DIGITS = 400  # of one number, without its sign; the largest float has 309

_TOO_LARGE = 10**MAX_DIGITS
_SURROGATE = re.compile("[\ud800-\udfff]")


class CallSyntaxError(ValueError):
    """Text that is not a call in its format. `reason` is one of a few fixed phrases, so that reasons can be counted."""

    def __init__(self, reason: str, position: int | None = None):
        super().__init__(reason if position is None else f"{reason} (at character {position})")
        self.reason = reason


def check_value(value: JSON, budget: int = MAX_VALUES) -> int:
    """Checks a JSON value, such as a call's arguments, and counts the values inside it.

    The outermost container counts neither as a value nor as a level. Iterative, so that no depth overflows the stack.

    Raises:
      CallSyntaxError: what no format can represent: nested too deep, more than `budget` values, a number that is not finite or
        has too many digits, text with lone surrogates, a type that JSON does not have.
    """
    count = -1  # without the outermost
    level = [value]
    for depth in range(MAX_DEPTH + 2):
        count += len(level)
        if count > budget:
            raise CallSyntaxError("too many values")
        below: list[JSON] = []
        for item in level:
            if isinstance(item, str):
                check_text(item)
            elif isinstance(item, dict):
                for key in item:
                    if not isinstance(key, str):
                        raise CallSyntaxError("a key that is not a string")
                    check_text(key)
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise CallSyntaxError("a number that is not finite")
            elif isinstance(item, int):
                if not -_TOO_LARGE < item < _TOO_LARGE:
                    raise CallSyntaxError("a number with too many digits")
            elif item is not None:
                raise CallSyntaxError("a value that JSON cannot hold")
            if depth > MAX_DEPTH and isinstance(item, dict | list | tuple):
                raise CallSyntaxError("nested too deep")
        if not below:
            return count
        level = below
    raise CallSyntaxError("nested too deep")


def check_digits(written: str) -> None:
    """Raises CallSyntaxError for the text of a number that is too long to be converted."""
    if len(written.lstrip("+-")) > MAX_DIGITS:
        raise CallSyntaxError("a number with too many digits")


def check_text(text: str) -> None:
    """Raises CallSyntaxError for text that cannot be encoded as UTF-8."""
    if not text.isascii() and _SURROGATE.search(text):
        raise CallSyntaxError("text with a lone surrogate")
