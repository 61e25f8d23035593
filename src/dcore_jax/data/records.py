"""Readers: files of tool-use data as `Record`s, with every rejected row counted."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcore_jax.data.contamination import ContaminationGuard
from dcore_jax.data.malformed import Malformed
from dcore_jax.data.record import LossTurns, Message, Record, Reference, Rejections
from dcore_jax.data.shapes import records_of
from dcore_jax.data.sources import SourceCount, read_sources

__all__ = [
    "LossTurns",
    "Malformed",
    "Message",
    "Record",
    "Reference",
    "Rejections",
    "parse_record",
    "read_records",
]

NO_ANSWER = "an RL prompt ({shape}), which holds no answer to learn from"
_FIELDS = {"verl": "prompt, reward_model", "api_bank": "system, user, answer", "xlam": "query, answers"}


def read_records(
    paths: Iterable[str | Path] | str | Path, *, strict: bool = False, seed: int = 0
) -> tuple[list[Record], Rejections]:
    """Reads files, folders and hub datasets, named as in `dcore_jax.data.sources`, in any of the shapes of docs/data.md.

    Args:
      seed: chooses the rows of sources with a weight that is not whole.

    Returns:
      The records in file order, and the rejections.

    Raises:
      UserError: a file that is missing, of another extension, or unreadable as a whole; with `strict`, the first
        rejected record.
    """
    rejections = Rejections(strict=strict)
    return list(iterate_records(paths, rejections, seed=seed)), rejections


def without_contaminated(
    records: Iterable[Record], guard: ContaminationGuard | None, rejections: Rejections
) -> Iterator[Record]:
    """The records that no benchmark item matches; the others are counted."""
    for record in records:
        reason = guard.reason_of_messages(record.messages, record.tools) if guard else ""
        if reason:
            rejections.add(reason, record.origin)
        else:
            yield record


def iterate_records(
    paths: Iterable[str | Path] | str | Path,
    rejections: Rejections,
    *,
    seed: int = 0,
    counts: dict[str, SourceCount] | None = None,
) -> Iterator[Record]:
    """`read_records` one by one, so that memory does not grow with the files; `counts` as in `read_sources`."""
    for origin, row, category, source in read_sources(paths, seed=seed, counts=counts):
        try:
            if isinstance(row, Malformed):
                raise row
            found = parse_record(row, origin=origin, category=category)
        except Malformed as reason:
            rejections.add(str(reason), origin)
            continue
        for record in found:
            yield replace(record, source=source)


def parse_record(row: Any, *, origin: str, category: str = "default") -> list[Record]:
    """The records of one row of a file: several only for a packed D-CORE line.

    Args:
      origin: where the row is from, as `file:line`.
      category: used where the row has no `category` (`read_records` passes the file's stem).

    Raises:
      Malformed: with the reason; also for a row that holds no answer to learn from (`parse_any_record` reads those too).
    """
    records = records_of(row, origin=origin, category=category)
    if prompt := next((record for record in records if not record.learnable), None):
        raise Malformed(NO_ANSWER.format(shape=_FIELDS.get(prompt.shape, prompt.shape)))
    return records


def parse_any_record(row: Any, *, origin: str, category: str = "default") -> list[Record]:
    """`parse_record`, with prompts that state a reference instead of an answer. Raises `Malformed`."""
    return records_of(row, origin=origin, category=category)
