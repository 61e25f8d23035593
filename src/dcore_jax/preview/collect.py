"""Counts over the records of a data set, and the first samples of it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dcore_jax.calls import parse_any_response
from dcore_jax.data.chat_template import as_chat_template
from dcore_jax.data.record import Record, Rejections
from dcore_jax.data.rendering import Mask, TrainingSample
from dcore_jax.data.store import DataReport, SampleStore, samples_from_records
from dcore_jax.errors import UserError
from dcore_jax.preview.segments import Segment, sample_segments


@dataclass
class _Counts:
    """Of what stands in the records' assistant turns."""

    shapes: Counter[str] = field(default_factory=Counter)
    notations: Counter[str] = field(default_factory=Counter)
    thoughts: int = 0
    calls: int = 0
    calling_turns: int = 0
    with_tools: int = 0  # records whose tools go to the template

    def count(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self.shapes[record.shape] += 1
            self.with_tools += bool(record.tools)
            for message in record.messages:
                if message["role"] == "assistant":
                    self._turn(message)
            yield record

    def _turn(self, message: dict[str, Any]) -> None:
        parsed, notation = parse_any_response(message.get("content") or "")
        self.thoughts += parsed.thought is not None or bool(message.get("reasoning_content"))
        structured = len(message.get("tool_calls") or ())
        written = len(parsed.calls or ())
        if parsed.calls is None:
            self.notations["attempted, not readable"] += 1
        elif structured or written:
            self.notations["tool_calls" if structured else notation or "another"] += 1
            self.calling_turns += 1
        self.calls += structured + written


@dataclass(frozen=True)
class Preview:
    """What is known of data before training."""

    report: DataReport | None  # None: no record holds an answer to learn from
    problem: str  # why there is no sample; empty where there is one
    store: SampleStore | None
    samples: tuple[tuple[str, tuple[Segment, ...]], ...]  # (origin, parts) of the first ones
    counts: _Counts
    rejected: Rejections  # records that could not be read


def collect(
    records: Iterable[Record],
    tokenizer: Any,
    *,
    rejected: Rejections,
    mask: Mask,
    max_length: int,
    samples: int,
    progress: bool = True,
) -> Preview:
    """Reads all records, as SFT would, and keeps the parts of the first `samples` samples.

    Args:
      tokenizer: with a chat template, or a `ChatTemplate`.
      rejected: the rejections of the records' reader, which may still grow.
    """
    counts = _Counts()
    try:
        store, report = samples_from_records(
            counts.count(records),
            tokenizer,
            mask=mask,
            max_length=max_length,
            rejected=rejected,
            progress=progress,
        )
    except UserError as error:
        return Preview(None, str(error), None, (), counts, rejected)
    bare = as_chat_template(tokenizer).tokenizer
    shown: list[TrainingSample] = [store[i] for i in range(min(samples, len(store)))]
    parts = tuple((sample.origin, tuple(sample_segments(sample, bare))) for sample in shown)
    return Preview(report, "", store, parts, counts, rejected)
