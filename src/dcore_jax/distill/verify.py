"""Verify (Algorithm 1): the calls of the whole turn must be the reference, exactly.

In order for sequential samples, in any order for parallel ones, none for irrelevant ones. The release checks sequential samples
only and takes the others as they are.
"""

from collections.abc import Sequence
from typing import Literal

from dcore_jax.calls import Call, calls_equal
from dcore_jax.distill.ask import Rejected
from dcore_jax.distill.sample import Kind

Preset = Literal["paper", "release"]


def verify(
    kind: Kind, calls: Sequence[Call], reference: Sequence[Call], preset: Preset, text: str = ""
) -> None:
    """Raises Rejected with stage `verify` and what is wrong with the first call that is.

    Args:
      calls: of the turn so far; a turn that is not at its end is given with the reference cut to the same length.
      text: what the model said, for the rejection.
    """
    if preset == "release" and kind != "sequential":
        return
    if not calls_equal(calls, reference, ordered=kind != "parallel"):
        raise Rejected("verify", _difference(kind, calls, reference), text)


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
