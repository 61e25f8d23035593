"""Tool calls as data, with parsers and renderers of the text formats in which models write them."""

from dcore_jax.calls.call import JSON, Call, as_calls, calls_equal, values_equal
from dcore_jax.calls.notation import instructed_notation
from dcore_jax.calls.parsed import CALL_FORMATS, CallFormat, ParsedResponse
from dcore_jax.calls.response import (
    parse_any_response,
    parse_calls,
    parse_response,
    render_calls,
    split_thought,
)

__all__ = [
    "CALL_FORMATS",
    "JSON",
    "Call",
    "CallFormat",
    "ParsedResponse",
    "as_calls",
    "calls_equal",
    "instructed_notation",
    "parse_any_response",
    "parse_calls",
    "parse_response",
    "render_calls",
    "split_thought",
    "values_equal",
]
