"""ToolACE (Team-ACE/ToolACE, arXiv 2409.00920): `{"system", "conversations": [{"from", "value"}]}`.

The tools are a JSON list inside the system text; the assistant calls as `[Name With Spaces(arg="x")]`, at times
with words around it; one `tool` message answers all calls of a message with a JSON list.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dcore_jax.calls import Call, parse_calls
from dcore_jax.data.files import Malformed
from dcore_jax.distill.seeds.conversation import Conversation, Said, exchanges_of
from dcore_jax.distill.seeds.schemas import openai_tools, tool_name
from dcore_jax.errors import UserError

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool"}
_INTRODUCTION = re.compile(r"\blist of functions in JSON format[^\n:]*+:?+\s*+", re.IGNORECASE)
# The sentences that say how to write calls, up to their full stop: the call format of the run says that. One that gives
# the format ends with the bracket it shows.
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
_AWKWARD = re.compile(r"[()\[\]{}=,\"'\\<>]")
_WORDS = {"true": "True", "false": "False", "null": "None"}
_STRING_OR_WORD = re.compile(
    r'"(?:[^"\\]++|\\.)*+"|\'(?:[^\'\\]++|\\.)*+\'|(?<=[=:,\[\s])(?:true|false|null)(?=\s*[,)\]}])', re.DOTALL
)
_ATTEMPTS = 64  # brackets that may open the list of tools


def conversation(row: dict[str, Any], origin: str) -> Conversation:
    """A ToolACE record. Raises `Malformed` with the reason."""
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
        exchanges=exchanges_of([_said(turn, names) for turn in turns]),
    )


def split_system(system: str) -> tuple[str, list[Any]]:
    """`(policy, tools)`: the system text without the first JSON list of named objects in it, and that list."""
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
    """The text without the sentence at its end that announces the list."""
    found = list(_INTRODUCTION.finditer(text))
    if not found or found[-1].end() < len(text):
        return text
    return text[: max(text.rfind(mark, 0, found[-1].start()) for mark in "\n.") + 1]


def find_calls(text: str, names: Sequence[str]) -> tuple[tuple[Call, ...], str]:
    """`(calls, words)`: the bracketed calls of a message, also inside words, and the words beside them.

    A text in brackets as a whole is calls; inside words only a bracket that opens with an offered tool's name
    and parenthesis is. Raises `Malformed` for such a bracket that cannot be read.
    """
    whole = text.strip()
    if whole.startswith("[") and whole.endswith("]"):
        return _parsed(whole, names), ""
    for span in _spans(text, names):
        calls = _parsed(text[span.start : span.stop], names)
        return calls, f"{text[: span.start].strip()}\n{text[span.stop :].strip()}".strip()
    return (), whole


def _said(turn: Any, names: Sequence[str]) -> Said:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise Malformed("a message without text")
    role = _ROLES.get(str(turn.get("from")))
    if role == "assistant":
        calls, words = find_calls(turn["value"], names)
        return Said("assistant", words, calls)
    if role is None:
        raise Malformed(f"unknown speaker {str(turn.get('from'))[:40]!r}")
    return Said("user" if role == "user" else "tool", turn["value"])


def _parsed(text: str, names: Sequence[str]) -> tuple[Call, ...]:
    with contextlib.suppress(UserError):
        return parse_calls(text, "python")
    try:
        return parse_calls(_mended(text, names), "python")
    except UserError:
        raise Malformed("calls that cannot be read") from None


def _mended(text: str, names: Sequence[str]) -> str:
    """The calls with JSON's words for Python's, and in quotes the offered names that cannot stand bare."""
    if awkward := [name for name in names if _AWKWARD.search(name)]:
        called = rf"(^\[\s*|\)\s*,\s*)({'|'.join(map(re.escape, awkward))})(?=\s*\()"
        text = re.sub(called, lambda match: match[1] + json.dumps(match[2], ensure_ascii=False), text)
    return _STRING_OR_WORD.sub(lambda match: _WORDS.get(match[0], match[0]), text)


def _spans(text: str, names: Sequence[str]) -> Iterator[range]:
    """Where a call list of an offered tool stands inside words: at most one, its brackets balanced."""
    if not names:
        return
    opening = re.search(rf"\[\s*(?:{'|'.join(map(re.escape, names))})\s*\(", text)
    if opening is None:
        return
    depth, quote, at = 0, "", opening.start()
    while at < len(text):
        character = text[at]
        if quote:
            at += character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[({") - (character in "])}")
            if depth == 0:
                yield range(opening.start(), at + 1)
                return
        at += 1
    raise Malformed("calls that cannot be read")
