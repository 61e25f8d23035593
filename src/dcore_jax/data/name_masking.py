"""Names of tools and parameters replaced by random strings: Hammer's function masking (2410.04587).

A model that is trained on such rows has to choose tools by their descriptions, since names say nothing. In one row each name is
replaced by the same string wherever it stands as a name: in the tools' schemas, in calls, and in the `name` of a tool's message.
Descriptions, requests, values and names inside of nested objects stay as they are.
"""

import hashlib
import json
import random
import string
from collections.abc import Mapping
from typing import Any

from dcore_jax.calls import parse_any_response
from dcore_jax.data.files import Malformed, decode_json

_LENGTH = 8
# Fields of a row that hold calls beside its messages.
_CALLS = ("answers", "reference")


def mask_names(row: Any, key: str) -> dict[str, Any]:
    """The row with masked names; a row of the same key gets the same strings in every process.

    Tools and calls must be objects (or their JSON text), as in xLAM's rows, in OpenAI messages and in seeds.

    Args:
      key: what the strings are drawn from; give every row its own.

    Raises:
      Malformed: a row without tools, one whose calls stand in text, or a call of a tool that is not offered.
    """
    if not isinstance(row, Mapping) or not row.get("tools"):
        raise Malformed("names=masked: no `tools` field, whose names could be masked")
    masks = _Masks(key, json.dumps(row, default=str))
    masked = dict(row)
    tools = _decoded(row["tools"], "tools")
    if not isinstance(tools, list):
        raise Malformed("names=masked: tools must be a list")
    masked["tools"] = _like(row["tools"], [masks.tool(tool) for tool in tools])
    for field in _CALLS:
        if row.get(field):
            masked[field] = masks.calls(row[field], field)
    for field in ("messages", "history"):
        if isinstance(row.get(field), list):
            masked[field] = [masks.message(message) for message in row[field]]
    return masked


class _Masks:
    """The strings of one row."""

    def __init__(self, key: str, text: str):
        seed = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self._random, self._text = random.Random(int.from_bytes(seed)), text
        self._tools: dict[str, str] = {}
        self._parameters: dict[str, str] = {}

    def tool(self, tool: Any) -> Any:
        if not isinstance(tool, Mapping):
            raise Malformed("names=masked: a tool that is not an object")
        if isinstance(tool.get("function"), Mapping):
            return {**tool, "function": self.tool(tool["function"])}
        name = tool.get("name")
        if not isinstance(name, str) or not name:
            raise Malformed("names=masked: a tool without a name")
        masked = {**tool, "name": self._of(self._tools, name)}
        for field in ("parameters", "arguments"):
            if isinstance(tool.get(field), Mapping):
                masked[field] = self._schema(tool[field])
        return masked

    def calls(self, value: Any, field: str) -> Any:
        calls = _decoded(value, field)
        if not isinstance(calls, list):
            raise Malformed(f"names=masked: {field} must be a list of calls")
        return _like(value, [self._call(call, field) for call in calls])

    def message(self, message: Any) -> Any:
        if not isinstance(message, Mapping):
            raise Malformed("names=masked: a message that is not an object")
        masked = dict(message)
        if message.get("role") == "assistant" and isinstance(message.get("content"), str):
            parsed, _ = parse_any_response(message["content"], list(self._tools))
            if parsed.calls is None or parsed.calls:
                raise Malformed(
                    "names=masked: calls that stand in the text of a turn; give them as tool_calls"
                )
        if message.get("tool_calls"):
            masked["tool_calls"] = self.calls(message["tool_calls"], "tool_calls")
        name = message.get("name")
        if message.get("role") == "tool" and isinstance(name, str) and name in self._tools:
            masked["name"] = self._tools[name]
        return masked

    def _call(self, call: Any, field: str) -> Any:
        if not isinstance(call, Mapping):
            raise Malformed(f"names=masked: a call in {field} that is not an object")
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._call(call["function"], field)}
        if not isinstance(call.get("name"), str) or call["name"] not in self._tools:
            raise Malformed(f"names=masked: a call of a tool that is not offered, in {field}")
        masked = {**call, "name": self._tools[call["name"]]}
        for key in ("arguments", "parameters"):
            if call.get(key):
                values = _decoded(call[key], key)
                if not isinstance(values, Mapping):
                    raise Malformed(f"names=masked: {key} of a call that are not an object")
                masked[key] = _like(call[key], {self._parameter(name): v for name, v in values.items()})
        return masked

    def _schema(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Of JSON schema or of xLAM's flat dialect."""
        if not isinstance(schema.get("properties"), Mapping):
            flat = all(isinstance(value, Mapping) for value in schema.values())
            return {self._parameter(name): value for name, value in schema.items()} if flat else dict(schema)
        masked = {**schema, "properties": {self._parameter(k): v for k, v in schema["properties"].items()}}
        if isinstance(schema.get("required"), list):
            masked["required"] = [
                self._parameter(name) if isinstance(name, str) else name for name in schema["required"]
            ]
        return masked

    def _parameter(self, name: str) -> str:
        return self._of(self._parameters, name)

    def _of(self, known: dict[str, str], name: str) -> str:
        while name not in known:
            letters = self._random.choices(string.ascii_letters + string.digits, k=_LENGTH - 1)
            mask = self._random.choice(string.ascii_letters) + "".join(letters)
            taken = {*self._tools.values(), *self._parameters.values()}
            if mask not in taken and mask not in self._text:
                known[name] = mask
        return known[name]


def _decoded(value: Any, field: str) -> Any:
    return decode_json(value, f"names=masked: {field} is text that is not JSON")


def _like(given: Any, value: Any) -> Any:
    """`value` as JSON text where `given` was text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(given, str) else value
