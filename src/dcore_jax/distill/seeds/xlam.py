"""xLAM-60k (Salesforce/xlam-function-calling-60k, arXiv 2406.18518): `{"query", "answers", "tools"}`.

`answers` and `tools` are JSON text of lists: `{"name", "arguments"}`, and tools in the flat dialect (schemas.py).
One query, one message of calls, no responses recorded.
"""

from typing import Any

from dcore_jax.calls import Call, as_calls
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.tool_schemas import openai_tools, relax_required
from dcore_jax.distill.sample import Kind
from dcore_jax.distill.seeds.conversation import Conversation, Exchange, Step
from dcore_jax.errors import UserError


def conversation(row: dict[str, Any], origin: str, source: str = "xlam") -> Conversation:
    """The conversation of an xLAM record; without answers it is irrelevant. Raises `Malformed` with the reason."""
    query = row.get("query")
    if not isinstance(query, str):
        raise Malformed("an xLAM record needs query (text), answers and tools (JSON lists)")
    calls = calls_of(row.get("answers"), "answers")
    kind: Kind | None = None if calls else "irrelevant"
    return Conversation(
        source=source,
        origin=origin,
        policy="",
        tools=relax_required(openai_tools(row.get("tools")), calls),
        exchanges=(Exchange(query, (Step("", calls),)),),
        kind=kind,
    )


def calls_of(value: Any, name: str) -> tuple[Call, ...]:
    """Calls from a list of `{"name", "arguments"}` or its JSON text; arguments may be JSON text too.

    Args:
      name: of the field, for the reason.

    Raises:
      Malformed: something else.
    """
    listed = _decoded(value, name)
    if not isinstance(listed, list):
        raise Malformed(f"{name} must be a list of calls, or its JSON text")
    try:
        return as_calls([_call(item, name) for item in listed])
    except UserError:
        raise Malformed(f"{name} holds something that is not a call with a name and arguments") from None


def _call(item: Any, name: str) -> Any:
    if not isinstance(item, dict):
        return item
    function = item["function"] if isinstance(item.get("function"), dict) else item
    arguments = function.get("arguments", function.get("parameters"))
    return {"name": function.get("name"), "arguments": _decoded(arguments, f"arguments of {name}")}


def _decoded(value: Any, name: str) -> Any:
    return decode_json(value, f"{name} is text that is not JSON")
