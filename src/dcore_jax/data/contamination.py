"""Test-set contamination: seeds, records and prompts that match an item of a benchmark are left out and counted.

A conversation is contaminated when one of its user messages, the query or an earlier one, equals one of a benchmark
item's, and the item offers a tool of the same name; or when such a message has `LONG` words or more, whatever
the tools (Hammer's masked records rename them). Texts and names of tools are compared in lower case by their
letters and digits alone.
"""

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.data.files import Malformed, decode_json, file_rows, local_file
from dcore_jax.errors import UserError

SAME_ITEM = "contaminated: query and tools of a benchmark item"
SAME_QUERY = "contaminated: long query of a benchmark item"
LONG = 8  # words: an everyday sentence ("thank you, that is all") is shorter

_DIALOGUE = re.compile(r"<user>(.*?)</user>", re.DOTALL)
_JSON_NAME = re.compile(r'"name"\s*:\s*"([^"]+)"')
_LISTED_TOOL = re.compile(r"^\d+\. Name: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class ContaminationGuard:
    """The queries of benchmarks, each with the names of every tool offered with it; all normalised."""

    tools_by_query: dict[str, frozenset[str]]
    items: int  # benchmark items read

    def reason_of(self, texts: Iterable[str], tools: Iterable[str]) -> str:
        """Why what holds these messages of a user and offers tools of these names must not be trained on; empty: it may be."""
        offered = set(map(_normalised, tools))
        found = ""
        for query in map(_normalised, texts):
            known = self.tools_by_query.get(query)
            if known is None:
                continue
            if known & offered:
                return SAME_ITEM
            if len(query.split()) >= LONG:
                found = SAME_QUERY
        return found

    def reason_of_messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        """The same for OpenAI-style messages; a dialogue between `<user>` tags, and tools in a system turn, are found."""
        texts = [m.get("content") or "" for m in messages if m["role"] == "user"]
        texts += [said.strip() for text in texts for said in _DIALOGUE.findall(text)]
        names = [str(tool.get("function", tool).get("name")) for tool in tools or ()]
        system = "\n".join(m.get("content") or "" for m in messages if m["role"] == "system")
        names += [*_LISTED_TOOL.findall(system), *_JSON_NAME.findall(system)]
        return self.reason_of(texts, names)


def read_benchmarks(paths: Iterable[str | Path]) -> ContaminationGuard:
    """The guard for benchmark files: BFCL's questions or its score files, API-Bank's items, or chat records.

    The fields of a row decide its form: `question` and `function` (also inside `prompt`), `system` and `user`,
    `messages` and `tools`, `query` and `tools`; messages and tools may be JSON text.

    Raises:
      UserError: at the first row of no such form, since an item that cannot be read could not be matched.
    """
    tools_by_query: dict[str, frozenset[str]] = {}
    items = 0
    for path in map(str, paths):
        for origin, row in file_rows(path, local_file(path)):
            if isinstance(row, dict) and {"accuracy", "total_count"} <= row.keys():
                continue  # the first line of a BFCL score file
            try:
                queries, tools = _item(row)
            except Malformed as reason:
                raise UserError(
                    f"{origin}: not a benchmark item to guard against ({reason}); give BFCL questions or scores,"
                    " API-Bank items or chat records"
                ) from None
            items += 1
            for query in filter(None, map(_normalised, queries)):
                tools_by_query[query] = tools_by_query.get(query, frozenset()) | tools
    return ContaminationGuard(tools_by_query, items)


def _item(row: Any) -> tuple[list[str], frozenset[str]]:
    """`(user messages, normalised tool names)` of a benchmark item."""
    if isinstance(row, Malformed):
        raise row
    if not isinstance(row, dict):
        raise Malformed("not a JSON object")
    if isinstance(row.get("prompt"), dict):
        row = row["prompt"]
    if "question" in row:
        queries = _question(row["question"])
        # BFCL's multi-turn items name no functions, but the classes that hold them.
        names = [*_names(row.get("function")), *_last_names(row.get("path"))]
    elif isinstance(row.get("system"), str) and isinstance(row.get("user"), str):
        queries = [said.strip() for said in _DIALOGUE.findall(row["user"])]
        names = _LISTED_TOOL.findall(row["system"])
    elif "messages" in row:
        queries, names = _user_texts(row["messages"]), _names(row.get("tools"))
    elif isinstance(row.get("query"), str):
        queries, names = [row["query"]], _names(row.get("tools"))
    else:
        raise Malformed(f"fields {', '.join(sorted(map(str, row)))[:80] or '(none)'}")
    if not queries:
        raise Malformed("no message of a user")
    return queries, frozenset(map(_normalised, names))


def _question(value: Any) -> list[str]:
    """BFCL's question: messages, or in its first files the bare text."""
    if not isinstance(value, str):
        return _user_texts(value)
    with contextlib.suppress(Malformed, RecursionError):
        if isinstance(messages := decode_json(value, "not JSON"), list):
            return _user_texts(messages)
    return [value]


def _user_texts(value: Any) -> list[str]:
    """The user messages in a message, in lists of messages nested to any depth, or in their JSON text."""
    value = _decoded(value, "messages")
    if isinstance(value, list):
        return [text for item in value for text in _user_texts(item)]
    if not isinstance(value, dict):
        raise Malformed("messages that are no objects")
    if value.get("role") != "user":
        return []
    if not isinstance(value.get("content"), str):
        raise Malformed("a message of a user without text")
    return [value["content"]]


def _names(tools: Any) -> list[str]:
    """The names of a list of tools, of one tool, or of their JSON text; none of None."""
    tools = _decoded(tools, "tools")
    if tools is None:
        return []
    listed = [_decoded(tool, "a tool") for tool in (tools if isinstance(tools, list) else [tools])]
    functions = [tool.get("function", tool) if isinstance(tool, dict) else None for tool in listed]
    names: list[Any] = [
        function.get("name") if isinstance(function, dict) else None for function in functions
    ]
    if not all(isinstance(name, str) for name in names):
        raise Malformed("a tool without a name")
    return names


def _last_names(path: Any) -> list[str]:
    if not isinstance(path, list | None) or not all(isinstance(name, str) for name in path or ()):
        raise Malformed("path is no list of names")
    return [name.split(".")[-1] for name in path or ()]


def _decoded(value: Any, name: str) -> Any:
    return decode_json(value, f"{name}: text that is not JSON")


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded))
