"""Verify (D-CORE, Algorithm 1): the calls of the whole turn must equal the reference.

In order for sequential and mixed samples, in any order for parallel ones, none for irrelevant and missing ones. The release
verifies sequential samples only and accepts the others as they are; a mixed sample is a sequential one to it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dcore_jax.calls import CALL_FORMATS, Call, calls_equal, parse_response
from dcore_jax.distill.ask import Rejected
from dcore_jax.distill.sample import Kind

Preset = Literal["paper", "release"]
_CALL_TAGS = ("<tool_call", "<function")


def verify(
    kind: Kind, calls: Sequence[Call], reference: Sequence[Call], preset: Preset, text: str = ""
) -> None:
    """Raises Rejected with stage `verify`, naming the first difference, unless the calls equal the reference.

    Args:
      calls: of the turn so far; to verify an unfinished turn, pass the reference cut to the same length.
      text: the model's text, for the rejection.
    """
    if preset == "release" and kind not in ("sequential", "mixed"):
        return
    if not calls_equal(calls, reference, ordered=kind != "parallel"):
        raise Rejected("verify", _difference(kind, calls, reference), text)


def verify_no_call(reply: str, tools: Sequence[Mapping[str, Any]], text: str = "") -> None:
    """Raises Rejected with stage `verify` where a reply calls a tool in any notation; naming a tool is not a call.

    Args:
      reply: the model's text after its thought.
      text: its whole text, for the rejection.
    """
    names = [str(tool["function"]["name"]) for tool in tools]
    if (
        any(tag in reply for tag in _CALL_TAGS)
        or written_calls(reply)
        or any(_mentions_call(reply, name) for name in names)
    ):
        raise Rejected("verify", "a call in another notation where none serves the request", text)


def written_calls(turn: str) -> tuple[Call, ...]:
    """The calls that a turn makes in the first of the call formats in which it makes any."""
    return next((calls for name in CALL_FORMATS if (calls := parse_response(turn, name).calls)), ())


def _mentions_call(reply: str, name: str) -> bool:
    if name not in reply:
        return False
    known = re.escape(name)
    return re.search(rf"""(?<!\w){known}\(|["']name["']\s*:\s*["']{known}["']""", reply) is not None


def _difference(kind: Kind, calls: Sequence[Call], reference: Sequence[Call]) -> str:
    if not reference:
        return "a call where none serves the request"
    if len(calls) != len(reference):
        return "another number of calls"
    if kind == "parallel":
        same_names = sorted(call.name for call in calls) == sorted(call.name for call in reference)
        return "other parameters or values" if same_names else "another tool"
    made, wanted = next(pair for pair in zip(calls, reference) if not calls_equal(pair[:1], pair[1:]))
    if made.name != wanted.name:
        return "another tool"
    return "another value" if made.arguments.keys() == wanted.arguments.keys() else "other parameters"
