"""Seeds: readers of tool-use data sets, each in its own format, to `SeedSample`s.

A source is data of any shape that `dcore_jax.data` reads, named as in `dcore_jax.data.sources` (a file, a folder, a hub dataset),
`name:` and such data (`toolace:data.json`) where a data set has rules of its own, or `toolworld:200`.
Formats, rules and licences: docs/seeds.md. In every sample

- `history` holds the messages before the query; a report's also holds the query itself, its calls and their
  responses, so that the report is the next message;
- `responses` has one entry per reference call, or none at all where the source records none. Unanswered calls at
  the end of a conversation, after others that were answered, have empty ones.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dcore_jax.data.malformed import Malformed
from dcore_jax.data.record import Rejections
from dcore_jax.data.sources import is_source, parse_source, read_sources
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.seeds import apigen_mt, hammer, jsonl, rlla, toolace, toolworld, xlam
from dcore_jax.distill.seeds.conversation import Conversation, samples_of, validated, with_id
from dcore_jax.errors import UserError
from dcore_jax.toolworld import TOOLWORLD

__all__ = ["COPY", "SOURCES", "parse_seed", "read_seeds", "seeds_by_spec", "validated", "with_id"]

_READERS: dict[str, Callable[[dict[str, Any], str], Conversation | list[Conversation | SeedSample]]] = {
    "toolace": toolace.conversation,
    "xlam": xlam.conversation,
    "apigen_mt": apigen_mt.conversation,
    "hammer": hammer.conversation,
    "rlla": rlla.conversation,
    "jsonl": jsonl.read,
}
SOURCES = (*_READERS, TOOLWORLD)
COPY = "a copy of an earlier sample"


def read_seeds(
    specs: Iterable[str], *, strict: bool = False, seed: int = 0
) -> tuple[list[SeedSample], Rejections]:
    """The samples of all sources in their order, without copies, and what was left out, by reason.

    A record makes as many samples as it has turns, so both counts are of turns, except for records that cannot be
    read as a whole.

    Args:
      specs: sources as `name:path`, or `toolworld:<number>`.
      strict: raise at the first rejection; copies are no rejections.
      seed: chooses the rows of sources with a weight.

    Raises:
      UserError: a source or an option that does not exist, a file that cannot be read; with `strict`, the first
        rejection.
    """
    by_spec, rejections = seeds_by_spec(specs, strict=strict, seed=seed)
    return [sample for samples in by_spec for sample in samples], rejections


def seeds_by_spec(
    specs: Iterable[str], *, strict: bool = False, seed: int = 0
) -> tuple[list[list[SeedSample]], Rejections]:
    """`read_seeds`, with one list of samples per source."""
    rejections = Rejections(strict=strict)
    by_spec: list[list[SeedSample]] = []
    ids: set[str] = set()
    copies = Rejections()
    for spec in specs:
        samples: list[SeedSample] = []
        by_spec.append(samples)
        for origin, found in _read_source(spec, seed):
            if isinstance(found, Malformed):
                rejections.add(str(found), origin)
            elif found.id in ids:
                copies.add(COPY, origin)
            else:
                ids.add(found.id)
                samples.append(found)
    rejections.counts.update(copies.counts)
    rejections.examples.update(copies.examples)
    return by_spec, rejections


def parse_seed(source: str, row: Any, origin: str) -> Iterator[SeedSample | Malformed]:
    """Yields the samples of one record in a source's format, and a `Malformed` with the reason for each rejected turn."""
    try:
        if isinstance(row, Malformed):
            raise row
        if not isinstance(row, dict):
            raise Malformed(f"a record must be a JSON object, not {type(row).__name__}")
        found = _READERS[source]({key: value for key, value in row.items() if value is not None}, origin)
        for item in found if isinstance(found, list) else [found]:
            if isinstance(item, SeedSample):
                yield item
            else:
                yield from samples_of(item)
    except Malformed as reason:
        yield reason
    except RecursionError:
        yield Malformed("nested too deep")


def _read_source(spec: str, seed: int) -> Iterator[tuple[str, SeedSample | Malformed]]:
    """Yields the origin of each sample or rejection with it."""
    source, colon, path = spec.partition(":")
    if source not in SOURCES and is_source(spec):
        source, colon, path = "jsonl", ":", spec  # each row's shape tells its reader
    if source not in SOURCES or not colon or not path:
        raise UserError(
            f"seeds {spec!r}: give a file, a folder or a hub dataset, <source>: and such data with one of "
            f"{', '.join(_READERS)}, or {TOOLWORLD}:<number>"
        )
    if source == TOOLWORLD:
        for sample in toolworld.read(spec):
            yield sample.origin, sample
        return
    if parse_source(path).weight > 1:
        raise UserError(f"seeds {spec!r}: copies of a seed are left out, so weight is at most 1 here")
    for row in read_sources(path, seed=seed):
        for found in parse_seed(source, row.row, row.origin):
            yield row.origin, found
