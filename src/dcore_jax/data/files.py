"""Data files as rows: JSONL, JSON arrays and Parquet, on disk or on the Hugging Face hub, each row with its origin."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcore_jax.data.arrow import parquet_rows
from dcore_jax.data.malformed import Malformed, decode_json
from dcore_jax.errors import UserError, first_line

__all__ = [
    "EXTENSIONS",
    "HUB",
    "Malformed",
    "decode_json",
    "extension_of",
    "file_rows",
    "local_file",
    "stem_of",
]

EXTENSIONS = (".jsonl", ".json", ".parquet", ".jsonl.gz")
HUB = "hf://datasets/"


def extension_of(name: str) -> str | None:
    """Which of EXTENSIONS a name ends in."""
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), None)


def stem_of(name: str) -> str:
    """A file's name without folder and extension: the category of rows that state none."""
    return Path(name).name.removesuffix(extension_of(name) or "")


def local_file(path: str, revision: str | None = None) -> Path:
    """The path of a local file, or of a hub file's copy in the cache.

    Args:
      path: a path, or `hf://datasets/<owner>/<name>/<file>`, also with `@<revision>` after the name.
      revision: of a hub file whose path names none.

    Raises:
      UserError: an unknown extension, or a file that does not exist or cannot be fetched.
    """
    if extension_of(path) is None:
        raise UserError(f"{path}: cannot read this extension; data files end in {', '.join(EXTENSIONS)}")
    if path.startswith(HUB):
        return _hub_file(path, revision)
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path given as data")
    return Path(path)


def _hub_file(path: str, revision: str | None) -> Path:
    parts = path.removeprefix(HUB).split("/", 2)
    if len(parts) != 3:
        raise UserError(f"{path}: a hub file is written {HUB}<owner>/<name>/<file>")
    from huggingface_hub import hf_hub_download  # imported late: local files need no hub client

    repo, _, named = "/".join(parts[:2]).partition("@")
    try:
        return Path(hf_hub_download(repo, parts[2], repo_type="dataset", revision=named or revision))
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
        yield from parquet_rows(name, path)
        return
    try:
        yield from _json_rows(name, path)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{name}: cannot read: {why}") from error


def _json_rows(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".json":
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        if data.lstrip()[:1] == b"[":
            yield from _array_rows(name, data)
            return
        if isinstance(whole := _parse_line(data), dict):  # one object, which may span several lines
            yield f"{name}:1", whole
            return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
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
