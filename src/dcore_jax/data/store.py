"""All samples of a run in flat arrays, and the report of what was read and rejected."""

import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from dcore_jax.data.contamination import ContaminationGuard
from dcore_jax.data.notation import shows_tools
from dcore_jax.data.record import Record, Rejections
from dcore_jax.data.records import iterate_records, without_contaminated
from dcore_jax.data.rendering import Mask, TrainingSample, characters, render_batch
from dcore_jax.data.sources import SourceCount
from dcore_jax.errors import UserError
from dcore_jax.progress import progress_bar

# Records rendered together: enough to keep the tokenizer's threads busy, few enough that the bar moves and memory does not.
_BATCH = 256
_BATCH_CHARACTERS = 100_000


@dataclass(frozen=True, eq=False)
class SampleStore:
    """Samples concatenated in flat arrays, 4 bytes and 2 bits a token (4 bytes more where turns are weighted).

    Sample i is offsets[i]:offsets[i + 1].
    """

    tokens: Int32[np.ndarray, "tokens"]
    loss_bits: UInt8[np.ndarray, "bytes"]  # np.packbits of the loss masks
    denominator_bits: UInt8[np.ndarray, "bytes"]  # np.packbits of the denominator masks
    offsets: Int64[np.ndarray, "bounds"]  # samples + 1
    categories: Int32[np.ndarray, "samples"]  # index into category_names
    category_names: tuple[str, ...]
    origins: tuple[str, ...]
    turns: int = 0  # assistant turns learned, over all samples
    weights: Float32[np.ndarray, "tokens"] | None = None  # of the tokens in loss and denominator; None: all 1

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Tokens per sample."""
        return np.diff(self.offsets)

    @property
    def loss_mask(self) -> Bool[np.ndarray, "tokens"]:
        """The loss masks of all samples."""
        return np.unpackbits(self.loss_bits, count=len(self.tokens)).view(bool)

    @property
    def denominator_mask(self) -> Bool[np.ndarray, "tokens"]:
        """The denominator masks of all samples."""
        return np.unpackbits(self.denominator_bits, count=len(self.tokens)).view(bool)

    def __getitem__(self, index: int) -> TrainingSample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start, stop = int(self.offsets[:-1][index]), int(self.offsets[1:][index])
        return TrainingSample(
            tokens=self.tokens[start:stop],
            loss_mask=bits_between(self.loss_bits, start, stop),
            denominator_mask=bits_between(self.denominator_bits, start, stop),
            category=self.category_names[self.categories[index]],
            origin=self.origins[index],
            weights=None if self.weights is None else self.weights[start:stop],
        )

    @classmethod
    def from_samples(cls, samples: Iterable[TrainingSample]) -> "SampleStore":
        """The store of these samples in their order; categories are numbered in order of appearance."""
        builder = _Builder()
        for sample in samples:
            builder.add(sample)
        return builder.store()


class _Builder:
    """A store under construction: its arrays grow in place, so that building takes little more memory than the store."""

    def __init__(self) -> None:
        self._tokens, self._weights = _Growing(np.int32), _Growing(np.float32)
        self._loss, self._denominator = _Growing(np.uint8), _Growing(np.uint8)
        self._bits: list[np.ndarray] = [np.zeros(0, bool)] * 2  # of the last, unfinished byte
        self._offsets, self._categories, self._names, self._origins = (
            [0],
            array("i"),
            dict[str, int](),
            list[str](),
        )
        self._turns = 0

    def add(self, sample: TrainingSample) -> None:
        if sample.weights is not None or self._weights.size:
            before = np.ones(
                self._offsets[-1] - self._weights.size, np.float32
            )  # of the samples that had none
            ones = np.ones(len(sample.tokens), np.float32)
            self._weights.extend(np.concatenate([before, ones if sample.weights is None else sample.weights]))
        self._tokens.extend(sample.tokens)
        masks = (sample.loss_mask, sample.denominator_mask)
        for i, (mask, packed) in enumerate(zip(masks, (self._loss, self._denominator))):
            bits = np.concatenate([self._bits[i], mask])
            whole = len(bits) // 8 * 8
            packed.extend(np.packbits(bits[:whole]))
            self._bits[i] = bits[whole:]
        self._offsets.append(self._offsets[-1] + len(sample.tokens))
        self._categories.append(self._names.setdefault(sample.category, len(self._names)))
        self._origins.append(sample.origin)
        self._turns += sample.turns

    def store(self) -> SampleStore:
        """The store; nothing can be added after it."""
        for bits, packed in zip(self._bits, (self._loss, self._denominator)):
            packed.extend(np.packbits(bits))
        return SampleStore(
            tokens=self._tokens.array(),
            loss_bits=self._loss.array(),
            denominator_bits=self._denominator.array(),
            offsets=np.array(self._offsets, np.int64),
            categories=np.array(self._categories, np.int32),
            category_names=tuple(self._names),
            origins=tuple(self._origins),
            turns=self._turns,
            weights=self._weights.array() if self._weights.size else None,
        )


class _Growing:
    """A flat array that grows in place."""

    def __init__(self, dtype: Any):
        self._values, self.size = np.zeros(0, dtype), 0

    def extend(self, values: np.ndarray) -> None:
        needed = self.size + len(values)
        if needed > len(self._values):
            self._values.resize(max(needed, self.size + self.size // 8), refcheck=False)
        self._values[self.size : needed] = values
        self.size = needed

    def array(self) -> np.ndarray:
        self._values.resize(self.size, refcheck=False)
        return self._values


def bits_between(bits: UInt8[np.ndarray, "bytes"], start: int, stop: int) -> Bool[np.ndarray, "length"]:
    """Values start to stop of a mask in a `np.packbits` array, without unpacking the rest."""
    first = start // 8
    return np.unpackbits(bits[first : -(-stop // 8)])[start - 8 * first : stop - 8 * first].view(bool)


@dataclass(frozen=True)
class DataReport:
    """Counts of records, samples and tokens, and of what was rejected. Its text is a small table."""

    records: int  # without the rejected ones
    rejected_records: Rejections  # lines that are no record
    rejected_turns: Rejections  # assistant turns that are not learned
    turns: int  # assistant turns in the records
    learned: int  # of them; each once
    samples: int
    tokens: int
    loss_tokens: int
    denominator_tokens: int  # tokens in the loss's denominator
    by_category: dict[str, int]  # samples per category
    seconds: float
    sources: tuple[SourceCount, ...] = ()  # kept: records of which a turn is learned
    unseen_tools: int = 0  # records with tools that neither the chat template nor a message of theirs shows

    def __str__(self) -> str:
        history = self.turns - self.learned - self.rejected_turns.total
        turns = f"{self.turns:,} turns, {self.learned:,} learned, {self.rejected_turns.total:,} rejected"
        turns += f", {history:,} history alone" if history else ""
        longest = f"   {self.tokens / self.samples:,.0f} tokens each" if self.samples else ""
        lines = [
            f"records   {self.records:>12,}   rejected {self.rejected_records.total:,}",
            f"samples   {self.samples:>12,}   {turns}{longest}",
            f"tokens    {self.tokens:>12,}   with loss {self.loss_tokens:,}"
            + (
                f", in the denominator {self.denominator_tokens:,}"
                if self.denominator_tokens != self.loss_tokens
                else ""
            ),
        ]
        if len(self.sources) > 1:
            lines += [f"source    {source}" for source in self.sources]
        if len(self.by_category) > 1:
            lines.append("category  " + ", ".join(f"{name} {n:,}" for name, n in self.by_category.items()))
        for title, rejections in (("records", self.rejected_records), ("turns", self.rejected_turns)):
            lines += [f"rejected {title}: {line}" for line in rejections.lines()]
        if self.unseen_tools:
            lines.append(
                f"unseen    the chat template does not show tools: {self.unseen_tools:,} records offer tools that the model "
                "cannot see; give the tokenizer a template that writes `tools`"
            )
        return "\n".join(lines)


def load_samples(
    paths: Iterable[str | Path] | str | Path,
    tokenizer: Any,
    *,
    mask: Mask = "last_turn",
    max_length: int,
    strict: bool = False,
    progress: bool = True,
    guard: ContaminationGuard | None = None,
    seed: int = 0,
) -> tuple[SampleStore, DataReport]:
    """Reads, renders and tokenises records of files, folders and hub datasets, named as in `dcore_jax.data.sources`.

    Args:
      seed: chooses the rows of sources with a weight that is not whole.
      guard: records that match an item of its benchmarks are left out and counted.
      max_length: in tokens; longer samples are rejected, never truncated.

    Raises:
      UserError: a file that cannot be read, a tokenizer that cannot render, no sample at all; with `strict`, the first
        rejection.
    """
    rejected, counts = Rejections(strict=strict), dict[str, SourceCount]()
    records = iterate_records(paths, rejected, seed=seed, counts=counts)
    return samples_from_records(
        without_contaminated(records, guard, rejected),
        tokenizer,
        mask=mask,
        max_length=max_length,
        strict=strict,
        progress=progress,
        rejected=rejected,
        counts=counts,
    )


def samples_from_records(
    records: Iterable[Record],
    tokenizer: Any,
    *,
    mask: Mask = "last_turn",
    max_length: int,
    strict: bool = False,
    progress: bool = True,
    rejected: Rejections | None = None,
    counts: Mapping[str, SourceCount] | None = None,
) -> tuple[SampleStore, DataReport]:
    """`load_samples` for records in memory, or from an iterator, of which few are held at a time.

    Args:
      rejected: the rejections of the records' reader, for the report; it may still grow while an iterator is read.
      counts: those of the records' reader, likewise; records that are learned are counted in them.
    """
    rejected = Rejections() if rejected is None else rejected
    counts = {} if counts is None else counts
    started = time.perf_counter()
    rejections = Rejections(strict=strict)
    builder, count, turns, unseen = _Builder(), 0, 0, 0
    shown = mask == "release" or shows_tools(tokenizer)  # `release` writes them itself
    total = len(records) if isinstance(records, Sized) else 0
    bar = progress_bar(total, desc="tokenising", unit="record", transient=True, disable=not progress)
    with closing(bar):
        for batch in _batches(records):
            rendered = render_batch(batch, tokenizer, mask=mask, max_length=max_length)
            for record, result in zip(batch, rendered):
                count += 1
                turns += sum(message["role"] == "assistant" for message in record.messages)
                unseen += not shown and not _tools_in_text(record)
                if result.samples and record.source in counts:
                    counts[record.source].kept += 1
                for sample in result.samples:
                    builder.add(sample)
                for reason in result.rejected:
                    rejections.add(reason, record.origin)
            bar.update(len(batch))
    store = builder.store()
    if not len(store):
        why = "; ".join(rejected.lines() + rejections.lines()) or "the files hold no records"
        raise UserError(f"no sample to train on: {why}")
    per_category = np.bincount(store.categories, minlength=len(store.category_names))
    return store, DataReport(
        records=count,
        rejected_records=rejected,
        rejected_turns=rejections,
        turns=turns,
        learned=store.turns,
        samples=len(store),
        tokens=len(store.tokens),
        loss_tokens=_count(store.loss_bits),
        denominator_tokens=_count(store.denominator_bits),
        by_category=dict(zip(store.category_names, map(int, per_category))),
        seconds=time.perf_counter() - started,
        sources=tuple(counts.values()),
        unseen_tools=unseen,
    )


def _tools_in_text(record: Record) -> bool:
    """Whether a record has no tools, or a message before its first reply names each of them."""
    given = list(takewhile(lambda message: message["role"] != "assistant", record.messages))
    text = "\n".join(str(message.get("content") or "") for message in given)
    names = [str(tool.get("function", tool).get("name", "")) for tool in record.tools or ()]
    return all(name in text for name in names)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records to be rendered together: few where they are long."""
    batch: list[Record] = []
    held = 0
    for record in records:
        size = sum(map(characters, record.messages))
        if batch and (len(batch) == _BATCH or held + size > _BATCH_CHARACTERS):
            yield batch
            batch, held = [], 0
        batch.append(record)
        held += size
    if batch:
        yield batch


def _count(bits: UInt8[np.ndarray, "bytes"]) -> int:
    return int(np.bitwise_count(bits).sum())
