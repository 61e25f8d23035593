"""Where a thought ends: at the last `</think>`, as models mention it while they think, but never inside an argument."""

import json
import re

from dcore_jax.calls.blocks import CLOSE, OPEN, block_end, json_block_end
from dcore_jax.calls.bounds import MAX_CALLS, CallSyntaxError
from dcore_jax.calls.json_format import parse_bare_json_calls
from dcore_jax.calls.python_format import balanced_end, parse_python_calls

OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"

_OPENS_PYTHON = re.compile(
    r"""\s*+\[\s*+(?:"(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|[^\s()\[\]{}=,:"'\\<>][^()\[\]{}=,"'\\<>\r\n]*+)\("""
)
_OPENS_JSON = re.compile(r'\s*+\[?+\s*+\{\s*+"(?:name|arguments|parameters)"')
_MAX_CANDIDATES = 16  # ends of a thought that are tried


def thought_end(text: str) -> int | None:
    """The position of the `</think>` that ends the thought; None where no thought ends.

    Tags in the strings of a well-formed block of calls do not count, and calls without a block reach to the end of the text.
    """
    closings = _closings(text)
    if not closings:
        return None
    starts = [at + len(CLOSE_THOUGHT) for at in closings]
    if not text.lstrip().startswith(OPEN_THOUGHT):
        starts.insert(0, 0)  # no thought at all: the tags may all stand in arguments
        closings.insert(0, -1)
    if len(starts) == 1:
        return closings[0]
    chosen = _before_calls(text, starts)
    found = closings[-1 if chosen is None else chosen]
    return None if found < 0 else found


def _closings(text: str) -> list[int]:
    """Every `</think>` that is not inside a well-formed block of calls."""
    closings = [match.start() for match in re.finditer(CLOSE_THOUGHT, text)]
    if not closings or text.find(OPEN) > closings[-1]:
        return closings
    at = text.find(OPEN)
    for _ in range(MAX_CALLS // 4):
        if at < 0 or not any(at < closing for closing in closings):
            break
        end = block_end(text, at + len(OPEN))
        if end < 0:
            break
        held = [closing for closing in closings if at < closing < end]
        if held and _is_json(text[at + len(OPEN) : end]):
            closings = [closing for closing in closings if closing not in held]
        elif held:
            end = at + len(OPEN)  # a tag that is only mentioned: a block may begin after it
        at = text.find(OPEN, end)
    return closings


def _is_json(inside: str) -> bool:
    """Whether every line, or the whole, is JSON."""
    lines = [line for line in inside.split("\n") if line.strip()]
    for pieces in ([inside], lines):
        try:
            for piece in pieces:
                json.loads(piece)
            return bool(lines)
        except (ValueError, RecursionError):
            continue
    return False


def _before_calls(text: str, starts: list[int]) -> int | None:
    """The first of `starts` that is followed by calls which reach over all later ones: calls up to the end of the text, or calls
    that are still open at the last of `starts` (they cannot be read, but they are no thought). None without such.
    """
    last = len(starts) - 1
    openings = (_OPENS_PYTHON, parse_python_calls), (_OPENS_JSON, parse_bare_json_calls)
    opened = [
        (i, parse) for i, start in enumerate(starts) for opens, parse in openings if opens.match(text, start)
    ]
    for i, parse in opened[:_MAX_CANDIDATES]:
        try:
            if parse(text[starts[i] :].strip()):
                return i
        except CallSyntaxError:
            continue
    for i, _ in opened:
        opening = len(text) - len(text[starts[i] :].lstrip())
        end = balanced_end(text, opening)
        if i < last and (end < 0 or end > starts[last]):
            return i
    answer = text[starts[last] :]
    whole = answer.lstrip().startswith(OPEN) and answer.count(OPEN) == answer.count(CLOSE)
    for i in range(0 if whole else last):
        if text[starts[i] : starts[last]].lstrip().startswith(OPEN):
            return i if _is_in_block(text, starts[i], starts[last]) else None
    return None


def _is_in_block(text: str, start: int, position: int) -> bool:
    """Whether a block of calls from `start` on is open at `position`."""
    at = text.find(OPEN, start, position)
    for _ in range(MAX_CALLS):
        if at < 0:
            break
        end = json_block_end(text, at + len(OPEN))
        if end < 0 or end > position:
            return True
        at = text.find(OPEN, end, position)
    return False
