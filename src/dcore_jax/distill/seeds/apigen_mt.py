"""APIGen-MT-5k (Salesforce/APIGen-MT-5k, arXiv 2504.03601): `{"system", "tools", "conversations"}`.

`tools` is JSON text of a list; a message is `{"from": "human" | "gpt" | "function_call" | "observation", "value"}`,
and a `function_call` holds one call as JSON text.
"""

from typing import Any

from dcore_jax.data.files import Malformed
from dcore_jax.data.tool_schemas import openai_tools
from dcore_jax.distill.seeds.conversation import Conversation, ParsedMessage, exchanges_of
from dcore_jax.distill.seeds.xlam import calls_of


def conversation(row: dict[str, Any], origin: str) -> Conversation:
    """The conversation of an APIGen-MT record. Raises `Malformed` with the reason."""
    system, turns = row.get("system") or "", row.get("conversations")
    if not isinstance(system, str) or not isinstance(turns, list):
        raise Malformed("an APIGen-MT record needs system (text), tools and conversations (a list)")
    return Conversation(
        source="apigen_mt",
        origin=origin,
        policy=system.strip(),
        tools=openai_tools(row.get("tools")),
        exchanges=exchanges_of(map(_parse_message, turns)),
    )


def _parse_message(turn: Any) -> ParsedMessage:
    if not isinstance(turn, dict) or not isinstance(value := turn.get("value"), str):
        raise Malformed("a message without text")
    role = turn.get("from")
    if role == "human":
        return ParsedMessage("user", value)
    if role == "gpt":
        return ParsedMessage("assistant", value)
    if role == "observation":
        return ParsedMessage("tool", value)
    if role == "function_call":
        listed = value if value.lstrip().startswith("[") else f"[{value}]"
        return ParsedMessage("assistant", "", calls_of(listed, "function_call"))
    raise Malformed(f"unknown speaker {str(role)[:40]!r}")
