"""ToolACE (Team-ACE/ToolACE, arXiv 2409.00920): `{"system", "conversations": [{"from", "value"}]}`.

The tools are a JSON list inside the system text; the assistant calls as `[Name With Spaces(arg="x")]`, at times
inside other text; one `tool` message answers all calls of a message with a JSON list.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from dcore_jax.calls import parse_any_response
from dcore_jax.data.files import Malformed
from dcore_jax.data.tool_schemas import openai_tools, tool_name
from dcore_jax.distill.seeds.conversation import Conversation, ParsedMessage, exchanges_of

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool"}
_INTRODUCTION = re.compile(r"\blist of functions in JSON format[^\n:]*+:?+\s*+", re.IGNORECASE)
# The sentences that say how to write calls, up to their full stop: the run has a call format of its own. A sentence that
# shows the format ends with the bracket of its example.
_CALLING_RULE = re.compile(
    r"(?:You should only return the function calls? in"
    r"|Should you decide to return the function call"
    r"|If you decide to invoke any of the function"
    r"|Put it in the format of"
    r"|NO other text MUST be included"
    r"|You SHOULD NOT include any other text in the response)"
    r"[^.\n\[]*+(?:\[[^\]]*+\])?+[^\S\n]*+\.?+[^\S\n]*+",
    re.IGNORECASE,
)
_ATTEMPTS = 64  # opening brackets tried as the start of the list of tools


def conversation(row: dict[str, Any], origin: str) -> Conversation:
    """The conversation of a ToolACE record. Raises `Malformed` with the reason."""
    system, turns = row.get("system"), row.get("conversations")
    if not isinstance(system, str) or not isinstance(turns, list):
        raise Malformed("a ToolACE record needs system (text) and conversations (a list)")
    policy, listed = split_system(system)
    tools = openai_tools(listed)
    names = [tool_name(tool) for tool in tools]
    return Conversation(
        source="toolace",
        origin=origin,
        policy=policy,
        tools=tools,
        exchanges=exchanges_of([_parse_message(turn, names) for turn in turns]),
    )


def split_system(system: str) -> tuple[str, list[Any]]:
    """`(policy, tools)`: the first JSON list of named objects in the system text, and the text without it."""
    for opening, _ in zip(re.finditer(r"\[", system), range(_ATTEMPTS)):
        try:
            value, end = json.JSONDecoder().raw_decode(system, opening.start())
        except (ValueError, RecursionError):
            continue
        if (
            value
            and isinstance(value, list)
            and all(isinstance(item, dict) and "name" in item for item in value)
        ):
            before = _without_introduction(system[: opening.start()])
            after = system[end:].lstrip(" .")
            kept = (_CALLING_RULE.sub("", text).strip() for text in (before, after))
            return "\n".join(filter(None, kept)), value
    return system.strip(), []


def _without_introduction(text: str) -> str:
    """The text without a last sentence that introduces the list."""
    found = list(_INTRODUCTION.finditer(text))
    if not found or found[-1].end() < len(text):
        return text
    return text[: max(text.rfind(mark, 0, found[-1].start()) for mark in "\n.") + 1]


def _parse_message(turn: Any, names: Sequence[str]) -> ParsedMessage:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise Malformed("a message without text")
    role = _ROLES.get(str(turn.get("from")))
    if role == "assistant":
        parsed, _ = parse_any_response(turn["value"], names)
        if parsed.calls is None:
            raise Malformed("calls that cannot be read")
        return ParsedMessage("assistant", parsed.reply, parsed.calls)
    if role is None:
        raise Malformed(f"unknown speaker {str(turn.get('from'))[:40]!r}")
    return ParsedMessage("user" if role == "user" else "tool", turn["value"])
