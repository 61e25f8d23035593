"""APIGen-MT-5k (Salesforce/APIGen-MT-5k, arXiv 2504.03601): `{"system", "tools", "conversations"}`.

`tools` is JSON text of a list; a message is `{"from": "human" | "gpt" | "function_call" | "observation", "value"}`,
and a `function_call` holds one call as JSON text.
"""

from typing import Any

from dcore_jax.data.files import Malformed
from dcore_jax.distill.seeds.conversation import Conversation, Said, exchanges_of
from dcore_jax.distill.seeds.schemas import openai_tools
from dcore_jax.distill.seeds.xlam import calls_of


def conversation(row: dict[str, Any], origin: str) -> Conversation:
    """An APIGen-MT record. Raises `Malformed` with the reason."""
    system, turns = row.get("system") or "", row.get("conversations")
    if not isinstance(system, str) or not isinstance(turns, list):
        raise Malformed("an APIGen-MT record needs system (text), tools and conversations (a list)")
    return Conversation(
        source="apigen_mt",
        origin=origin,
        policy=system.strip(),
        tools=openai_tools(row.get("tools")),
        exchanges=exchanges_of(map(_said, turns)),
    )


def _said(turn: Any) -> Said:
    if not isinstance(turn, dict) or not isinstance(value := turn.get("value"), str):
        raise Malformed("a message without text")
    speaker = turn.get("from")
    if speaker == "human":
        return Said("user", value)
    if speaker == "gpt":
        return Said("assistant", value)
    if speaker == "observation":
        return Said("tool", value)
    if speaker == "function_call":
        listed = value if value.lstrip().startswith("[") else f"[{value}]"
        return Said("assistant", "", calls_of(listed, "function_call"))
    raise Malformed(f"unknown speaker {str(speaker)[:40]!r}")
