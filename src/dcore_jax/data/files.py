"""Data files as rows: JSONL, JSON arrays and Parquet, on disk or on the Hugging Face hub, each row with its origin."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError, first_line

EXTENSIONS = (".jsonl", ".json", ".parquet")
HUB = "hf://datasets/"

# Columns that are read, and the fields in them that hold data of a caller's own, in which a null is a value.
_COLUMNS = (
    *("tools", "functions", "messages", "conversations", "prompt", "completion", "chosen", "history"),
    *("reference", "answers", "answer", "reward_model"),
)
_DATA = {
    **dict.fromkeys(("tools", "functions"), "tools"),
    **dict.fromkeys(("arguments", "parameters"), "arguments"),
    **dict.fromkeys(("content", "value"), "content"),
}
_STORED = {
    "tools": "tools as a JSON string",
    "arguments": "arguments as a JSON string",
    "content": "a tool's result as text",
}


class Malformed(ValueError):
    """A record that cannot be used; its message is the reason under which it is counted."""


def decode_json(value: Any, reason: str) -> Any:
    """The value of JSON text; what is not text comes back as it is. Raises `Malformed` with the reason given."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Malformed(reason) from None


def local_file(path: str) -> Path:
    """The path of a local file, or of a hub file's copy in the cache.

    Args:
      path: a path, or `hf://datasets/<owner>/<name>/<file>`.

    Raises:
      UserError: an unknown extension, or a file that does not exist or cannot be fetched.
    """
    if Path(path).suffix not in EXTENSIONS:
        raise UserError(f"{path}: cannot read this extension; data files end in {', '.join(EXTENSIONS)}")
    if path.startswith(HUB):
        return _hub_file(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path given as data")
    return Path(path)


def _hub_file(path: str) -> Path:
    parts = path.removeprefix(HUB).split("/", 2)
    if len(parts) != 3:
        raise UserError(f"{path}: a hub file is written {HUB}<owner>/<name>/<file>")
    from huggingface_hub import hf_hub_download  # imported late: local files need no hub client

    repo, _, revision = "/".join(parts[:2]).partition("@")
    try:
        return Path(hf_hub_download(repo, parts[2], repo_type="dataset", revision=revision or None))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot fetch from the hub: {first_line(error)}") from error


def file_rows(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (origin, row) for every row of a file; a row that is not JSON is yielded as a `Malformed`.

    Args:
      name: how the file is named in origins: `name:line`, or `name:row` for Parquet, counted from 1.
      path: of the local file.

    Raises:
      UserError: a file that cannot be read as a whole.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(name, path)
        return
    try:
        yield from _json_rows(name, path)
    except OSError as error:
        raise UserError(f"{name}: cannot read: {error.strerror}") from error


def _json_rows(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".json":
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        if data.lstrip()[:1] == b"[":
            yield from _array_rows(name, data)
            return
        if isinstance(whole := _parse_line(data), dict):  # one object, which may span several lines
            yield f"{name}:1", whole
            return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{name}:{number}", _parse_line(line)


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        return Malformed("not UTF-8")
    except (ValueError, RecursionError):
        return Malformed("invalid JSON")


def _array_rows(name: str, data: bytes) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array, parsed one by one so that the origin of each is the line on which it starts."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    decode = json.JSONDecoder().raw_decode
    at = _after_space(text, text.index("[") + 1)
    line, counted = 1, 0  # the line of position `counted`
    if closed := text[at : at + 1] == "]":
        at = _after_space(text, at + 1)
    while not closed:
        line, counted = line + text.count("\n", counted, at), at
        try:
            element, at = decode(text, at)
            at = _after_space(text, at)
            if text[at : at + 1] not in ("]", ","):
                raise ValueError("neither the end nor another element")
        except (ValueError, RecursionError):
            # After a syntax error the boundaries of elements are unknown.
            yield f"{name}:{line}", Malformed("invalid JSON in an array: nothing from it on was read")
            return
        yield f"{name}:{line}", element
        closed = text[at] == "]"
        at = _after_space(text, at + 1)
    if at < len(text):
        line += text.count("\n", counted, at)
        yield f"{name}:{line}", Malformed("text after a JSON array: nothing from it on was read")


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _parquet_rows(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    ambiguous = _ambiguous_null(row)
                    yield f"{name}:{number}", Malformed(ambiguous) if ambiguous else row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a readable Parquet file: {first_line(error)}") from error


def _ambiguous_null(row: dict[str, Any]) -> str | None:
    """The reason to reject a row with nulls inside arguments, tool schemas or a tool's result; None without such nulls.

    Parquet gives every struct of a column all of the column's fields, so a null there may mean absent or null.
    """
    return next((why for name in _COLUMNS if (why := _null_in_data({name: row.get(name)}))), None)


def _null_in_data(value: Any) -> str | None:
    if isinstance(value, list):
        return next((why for item in value if (why := _null_in_data(item))), None)
    for key, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, dict | list):
            kind = _DATA.get(key)
            if kind is not None and _has_null(item) and (isinstance(item, dict) or kind != "content"):
                return f"nulls inside a Parquet struct of {kind}: store {_STORED[kind]}"
            if why := _null_in_data(item):
                return why
    return None


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(item is None or _has_null(item) for item in value.values())
    return isinstance(value, list) and any(map(_has_null, value))
