"""Where the blocks of calls are in a text. A tag inside a JSON string ends no block."""

import re

from dcore_jax.calls.bounds import MAX_CALLS, CallSyntaxError

OPEN, CLOSE = "<tool_call>", "</tool_call>"

# The inside of a block and its closing tag; strings are passed over whole. Possessive: no input makes it backtrack.
_TO_CLOSE = re.compile(r'(?:[^"<]++|"(?:[^"\\]++|\\.)*+"|<(?!/tool_call>))*+</tool_call>', re.DOTALL)
_OPENS_JSON = re.compile(r"\s*+[\[{]")


def find_blocks(text: str, start: int = 0) -> list[tuple[int, int]]:
    """`(start, end)` of what stands inside each `<tool_call>` block from `start` on, in order.

    A block ends at the first `</tool_call>` outside of a JSON string; where quotes do not pair up, at the first one.

    Raises:
      CallSyntaxError: a block that is not closed.
    """
    blocks = []
    at = text.find(OPEN, start)
    while at >= 0:
        inside = at + len(OPEN)
        end = block_end(text, inside)
        if end < 0:
            raise CallSyntaxError("a call block that is not closed")
        blocks.append((inside, end))
        if len(blocks) > MAX_CALLS:
            raise CallSyntaxError("too many calls")
        at = text.find(OPEN, end + len(CLOSE))
    return blocks


def block_end(text: str, inside: int) -> int:
    """Where the block whose inside starts at `inside` has its closing tag; -1 without one."""
    end = json_block_end(text, inside)
    return end if end >= 0 else text.find(CLOSE, inside)


def json_block_end(text: str, inside: int) -> int:
    """The same for a block that starts like JSON, by the closing tag outside of its strings; -1 without one."""
    match = _TO_CLOSE.match(text, inside) if _OPENS_JSON.match(text, inside) else None
    return -1 if match is None else match.end() - len(CLOSE)
