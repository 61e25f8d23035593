"""Rows of Arrow tables (Parquet files, hub datasets): Parquet reading, and which nulls are fields that a row does not have.

A struct column gives every row all fields of every other row, null where a row has none. Such nulls are taken out where what
they mean can be told:

- of a message and of a call, every null but `content: null`, which templates tell from an absent content; an empty `tool_calls`
  too;
- of a tool's schema, every null: none means anything there (the null of an `enum` is an element of a list and stays);
- of a call's arguments, those that the row's own schema of the tool does not know, or knows and does not require.

A null argument that the schema requires, or of a tool that no schema describes, stays ambiguous: the row is rejected.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dcore_jax.data.malformed import Malformed
from dcore_jax.data.tool_schemas import openai_tools, tool_name
from dcore_jax.errors import UserError, first_line

AMBIGUOUS = "nulls inside a Parquet struct of arguments: store arguments as a JSON string"
AMBIGUOUS_RESULT = "nulls inside a Parquet struct of content: store a tool's result as text"
_TOOLS = ("tools", "functions")
_MESSAGES = ("messages", "conversations", "prompt", "completion", "chosen", "history")
_CALLS = ("reference", "answers", "answer")  # lists of calls outside of messages
_TEXTS = ("content", "value", "text")
_ARGUMENTS = ("arguments", "parameters")

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
    try:
        tools = {key: _without_nulls(row[key]) for key in _TOOLS if key in row and key not in stated}
        row = {**row, **tools}
        schemas = _schemas(row)
        for key in _MESSAGES:
            if key in row and key not in stated:
                row[key] = _messages(row[key], schemas)
        for key in _CALLS:
            if key in row and key not in stated:
                row[key] = _calls(row[key], schemas)
        model = row.get("reward_model")
        if isinstance(model, dict) and "reward_model" not in stated:
            truth = _calls(model.get("ground_truth"), schemas)
            row["reward_model"] = {**model, "ground_truth": truth}
    except Malformed as reason:
        return reason
    return row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(item is None or _has_null(item) for item in value.values())
    return isinstance(value, list) and any(map(_has_null, value))


def _schemas(row: Mapping[str, Any]) -> Schemas:
    """The parameters of the row's tools that a schema describes."""
    found = next((row[key] for key in _TOOLS if row.get(key)), None)
    try:
        tools = openai_tools(found) if found else ()
    except Malformed:  # whoever reads the row says what is wrong with them
        return {}
    return {tool_name(tool): tool["function"]["parameters"] for tool in tools}


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
    if isinstance(kept.get("content"), list):
        kept["content"] = _without_nulls(kept["content"])
    if any(isinstance(kept.get(key), dict) and _has_null(kept[key]) for key in _TEXTS):
        raise Malformed(AMBIGUOUS_RESULT)
    if isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = _calls(kept["tool_calls"], schemas)
        if not kept["tool_calls"]:
            del kept["tool_calls"]
    if isinstance(kept.get("function_call"), dict):
        kept["function_call"] = _call(kept["function_call"], schemas)
        if not kept["function_call"]:
            del kept["function_call"]
    # A field keeps its place: a null content is not moved to the end.
    return {key: kept[key] for key in message if key in kept}


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
    """Arguments without the nulls that mean "absent" by a schema. Raises `Malformed` where it does not say."""
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
            raise Malformed(AMBIGUOUS)
    return kept
