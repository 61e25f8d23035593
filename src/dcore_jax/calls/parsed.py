"""The parts of an assistant turn, and the names of the notations in which its calls may be written."""

from typing import NamedTuple, TypeAlias

from dcore_jax.calls.call import Call

# One of CALL_FORMATS. Not a Literal: the name comes from a user's config, where a wrong one must raise UserError.
CallFormat: TypeAlias = str
CALL_FORMATS: tuple[CallFormat, ...] = ("python", "tags", "qwen", "json")


class ParsedResponse(NamedTuple):
    """The parts of an assistant turn."""

    thought: str | None  # between `<think>` and `</think>`, stripped; None when the turn has no thought
    calls: tuple[Call, ...] | None  # () when the turn makes none; None when they could not be parsed: `error`
    reply: str  # the text for the user, stripped; "" when there is none
    call_text: str = ""  # what was parsed as calls, with its tags or brackets; "" when the turn attempts none
    error: str | None = None  # one of a few fixed phrases, so that errors can be counted
