"""The final corpus: every record once, in an order that looks random and is always the same.

Records are sorted by a hash of the seed and their content, which shuffles them whatever order they arrived in; two with
the same content fall beside each other, and one is kept. The sort goes through buckets on disk, so memory stays small.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

Form = Literal["jsonl", "parquet"]
_BUCKETS = 64


class CorpusSummary(NamedTuple):
    """What was written."""

    path: Path
    records: int
    duplicates: int  # left out
    sha256: str  # of the file


def write_corpus(records: Iterable[dict[str, Any]], folder: Path, *, form: Form, seed: int) -> CorpusSummary:
    """Writes `corpus.jsonl` or `corpus.parquet`; an earlier one is replaced when the new one is whole.

    One process at a time may write in a folder (run_folder.py holds it).

    In Parquet messages and tools are JSON strings, so that no field gets nulls it never had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"corpus.{form}"
    for left_by_a_kill in folder.glob("corpus.partial*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    partial = folder / "corpus.partial"
    partial.mkdir()
    try:
        total = _fill_buckets(records, partial, seed)
        unfinished = partial / out.name
        count = _write(_in_order(partial), unfinished, form)
        with unfinished.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        unfinished.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return CorpusSummary(out, count, total - count, digest)


def _fill_buckets(records: Iterable[dict[str, Any]], folder: Path, seed: int) -> int:
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
