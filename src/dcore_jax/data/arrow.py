"""Rows of Arrow tables (Parquet files, hub datasets): Parquet reading, and which nulls are fields that a row does not have.

A struct column gives every row all fields of every other row, null where a row has none. Such nulls are taken out where what
they mean can be told:

- of a message and of a call, every null but `content: null`, which templates tell from an absent content; an empty `tool_calls`
  too;
- of a tool's schema, every null: none means anything there (the null of an `enum` is an element of a list and stays);
- of a call's arguments, those that the row's own schema of the tool does not know, or knows and does not require.

What is left is ambiguous and rejects the row: a null argument that the schema requires, or of a tool that no schema describes,
and nulls in a tool's result that is no text.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dcore_jax.data.malformed import Malformed
from dcore_jax.data.tool_schemas import openai_tools, tool_name
from dcore_jax.errors import UserError, first_line

_TOOLS = ("tools", "functions")
_MESSAGES = ("messages", "conversations", "prompt", "completion", "chosen", "history")
_CALLS = ("reference", "answers", "answer")  # lists of calls outside of messages
_TEXTS = ("content", "value", "text")
_ARGUMENTS = ("arguments", "parameters")
# Fields that hold data of a caller's own, in which a null is a value, and what to store in their place.
_DATA = {
    **dict.fromkeys(_TOOLS, "tools"),
    **dict.fromkeys(_ARGUMENTS, "arguments"),
    **dict.fromkeys(("content", "value"), "content"),
}
_STORED = {
    "tools": "tools as a JSON string",
    "arguments": "arguments as a JSON string",
    "content": "a tool's result as text",
}

Schemas = Mapping[str, Mapping[str, Any]]  # of the parameters, by the tool's name


def parquet_rows(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (`name:row`, row) of a Parquet file, rows counted from 1; an ambiguous row as a `Malformed`.

    Raises:
      UserError: a file that is no readable Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:{number}", decided_nulls(row)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a readable Parquet file: {first_line(error)}") from error


def decided_nulls(row: dict[str, Any], stated: Collection[str] = ()) -> dict[str, Any] | Malformed:
    """The row without the nulls that Arrow filled in; a `Malformed` where a null may mean "null" as well as "absent".

    Args:
      stated: columns whose nulls are the writer's own, as those of a JSON type.
    """
    columns = {
        key: row[key]
        for key in (*_TOOLS, *_MESSAGES, *_CALLS, "reward_model")
        if row.get(key) is not None and key not in stated
    }
    for key in _TOOLS:
        if key in columns:
            columns[key] = _without_nulls(columns[key])
    schemas = _schemas({**row, **columns})
    for key in columns.keys() & set(_MESSAGES):
        columns[key] = _messages(columns[key], schemas)
    for key in columns.keys() & set(_CALLS):
        columns[key] = _calls(columns[key], schemas)
    if isinstance(model := columns.get("reward_model"), dict):
        columns["reward_model"] = {**model, "ground_truth": _calls(model.get("ground_truth"), schemas)}
    if why := _null_in_data(columns):
        return Malformed(why)
    return {**row, **columns}


def _null_in_data(value: Any) -> str | None:
    """The reason to reject a row that still has nulls inside arguments, tool schemas or a tool's result; None without such."""
    if isinstance(value, list):
        return next((why for item in value if (why := _null_in_data(item))), None)
    for key, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, dict | list):
            kind = _DATA.get(key)
            if kind is not None and _has_null(item):
                return f"nulls inside a Parquet struct of {kind}: store {_STORED[kind]}"
            if why := _null_in_data(item):
                return why
    return None


def _has_null(value: Any) -> bool:
    """Whether a struct anywhere in it has a null field."""
    if isinstance(value, dict):
        return any(item is None or _has_null(item) for item in value.values())
    return isinstance(value, list) and any(map(_has_null, value))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _schemas(row: Mapping[str, Any]) -> Schemas:
    """The parameters of the row's tools that a schema describes."""
    messages = [item for key in _MESSAGES for item in _listed(row.get(key)) if isinstance(item, dict)]
    found = next((holder[key] for holder in (row, *messages) for key in _TOOLS if holder.get(key)), None)
    found = _without_nulls(found)
    try:
        tools = openai_tools(found) if found else ()
    except Malformed:  # whoever reads the row says what is wrong with them
        return {}
    return {tool_name(tool): tool["function"]["parameters"] for tool in tools}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _messages(value: Any, schemas: Schemas) -> Any:
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        # A sequence of structs that was written as a struct of columns.
        value = [dict(zip(value, fields)) for fields in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        return value
    return [_message(item, schemas) if isinstance(item, dict) else item for item in value]


def _message(message: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    kept = {key: item for key, item in message.items() if item is not None}
    if "content" in message and not any(key in kept for key in _TEXTS):
        kept["content"] = None
    for key in _TEXTS:
        if isinstance(kept.get(key), list) and all(map(_is_part, kept[key])):
            kept[key] = _without_nulls(kept[key])
    for key in _TOOLS:
        if key in kept:
            kept[key] = _without_nulls(kept[key])
    if isinstance(kept.get("tool_calls"), dict | list):
        kept["tool_calls"] = _calls(kept["tool_calls"], schemas)
        if not kept["tool_calls"]:
            del kept["tool_calls"]
    if isinstance(kept.get("function_call"), dict):
        kept["function_call"] = _call(kept["function_call"], schemas)
        if not kept["function_call"]:
            del kept["function_call"]
    # A field keeps its place: a null content is not moved to the end.
    return {key: kept[key] for key in message if key in kept}


def _is_part(value: Any) -> bool:
    """Whether an element of a list of content is a part of a text, rather than a tool's result."""
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _calls(value: Any, schemas: Schemas) -> Any:
    if isinstance(value, dict):
        return _call(value, schemas)
    if not isinstance(value, list):
        return value
    return [_call(item, schemas) if isinstance(item, dict) else item for item in value]


def _call(call: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    kept = {key: item for key, item in call.items() if item is not None}
    if isinstance(kept.get("function"), dict):
        return {**kept, "function": _call(kept["function"], schemas)}
    schema = schemas.get(kept["name"]) if isinstance(kept.get("name"), str) else None
    for key in _ARGUMENTS:
        if isinstance(kept.get(key), dict):
            kept[key] = _arguments(kept[key], schema)
    return kept


def _arguments(value: Any, schema: Any) -> Any:
    """Arguments without the nulls that mean "absent" by a schema."""
    schema = schema if isinstance(schema, Mapping) else {}
    if isinstance(value, list):
        return [_arguments(item, schema.get("items")) for item in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties")
    # A schema that the call's other arguments do not follow does not tell what the call may hold.
    closed = (
        isinstance(known, Mapping)
        and not schema.get("additionalProperties")
        and all(key in known for key, item in value.items() if item is not None)
    )
    kept = {}
    for key, item in value.items():
        described = isinstance(known, Mapping) and key in known
        if item is not None:
            kept[key] = _arguments(item, known[key] if described and known is not None else None)
        elif not (described or closed) or key in (schema.get("required") or ()):
            kept[key] = None  # ambiguous
    return kept
