"""The final corpus: every record once, in a shuffled order that depends on seed and content only.

Records are sorted by a hash of the seed and their content: a shuffle that does not depend on the order of arrival. Records
with equal content have equal hashes, so they are neighbours and one is kept. The sort uses buckets on disk, to bound memory.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from dcore_jax.atomic import atomic_path

Form = Literal["jsonl", "parquet"]
_BUCKETS = 64


class CorpusSummary(NamedTuple):
    """A written corpus: the file, its number of records, and what was left out."""

    path: Path
    records: int
    duplicates: int  # left out
    sha256: str  # of the file


def write_corpus(records: Iterable[dict[str, Any]], folder: Path, *, form: Form, seed: int) -> CorpusSummary:
    """Writes `corpus.jsonl` or `corpus.parquet`; an earlier one is replaced when the new one is complete.

    One process at a time may write in a folder (run_folder.py locks it).

    Args:
      records: with `id` and `source`, which do not count as content.
      form: in Parquet, messages and tools are JSON strings, so that no field gets nulls that it never had.
      seed: of the shuffle.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    out, buckets = folder / f"corpus.{form}", folder / "corpus.partial"
    buckets.mkdir()
    try:
        total = _fill_buckets(records, buckets, seed)
        with atomic_path(out) as unfinished:
            count = _write(_in_order(buckets), unfinished, form)
            with unfinished.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        shutil.rmtree(buckets, ignore_errors=True)
    return CorpusSummary(out, count, total - count, digest)


def _remove_leftovers(folder: Path) -> None:
    """Buckets and unfinished files of a process that was killed."""
    for path in folder.glob("corpus.partial*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("corpus.*.partial-*"):
        path.unlink(missing_ok=True)


def _fill_buckets(records: Iterable[dict[str, Any]], folder: Path, seed: int) -> int:
    """Writes each record behind its key into one of the bucket files; the number of records."""
    buckets: list[IO[str]] = [(folder / f"{i:02d}").open("w", encoding="utf-8") for i in range(_BUCKETS)]
    total = 0
    try:
        for record in records:
            content = {name: value for name, value in record.items() if name not in ("id", "source")}
            text = json.dumps(content, sort_keys=True)
            key = hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()
            buckets[int(key[:8], 16) % _BUCKETS].write(f"{key} {record['id']} {json.dumps(record)}\n")
            total += 1
    finally:
        for bucket in buckets:
            bucket.close()
    return total


def _in_order(folder: Path) -> Iterator[str]:
    """The records of all buckets in the order of their keys, one of each key."""
    # Buckets are filled by the key's first digits modulo their number, so the order is of buckets first, then of keys.
    for i in range(_BUCKETS):
        before = ""
        for line in sorted((folder / f"{i:02d}").read_text(encoding="utf-8").splitlines()):
            key, _, record = line.split(" ", 2)
            if key != before:
                yield record
            before = key


def _write(lines: Iterable[str], path: Path, form: Form) -> int:
    count = 0
    if form == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
        return count
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("messages", "tools", "category", "loss_turns", "id", "source")
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for line in lines:
            record = json.loads(line)
            tools = json.dumps(record["tools"]) if "tools" in record else None
            batch.append({**record, "messages": json.dumps(record["messages"]), "tools": tools})
            count += 1
            if len(batch) == 1024:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema))
    return count
