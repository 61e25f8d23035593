"""All samples of a run in flat arrays, and the report of what was read and rejected."""

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from dcore_jax.data.records import Record, Rejections, read_records
from dcore_jax.data.rendering import Mask, TrainingSample, render_batch
from dcore_jax.errors import UserError
from dcore_jax.progress import progress_bar

# Records rendered per tokenizer call: enough to keep its threads busy, few enough that the bar moves.
_BATCH = 256


@dataclass(frozen=True, eq=False)
class SampleStore:
    """Samples concatenated in flat arrays, 4 bytes and 2 bits a token: sample i is offsets[i]:offsets[i + 1]."""

    tokens: Int32[np.ndarray, "tokens"]
    loss_bits: UInt8[np.ndarray, "bytes"]  # np.packbits of the loss masks
    denominator_bits: UInt8[np.ndarray, "bytes"]  # np.packbits of the denominator masks
    offsets: Int64[np.ndarray, "bounds"]  # samples + 1
    categories: Int32[np.ndarray, "samples"]  # index into category_names
    category_names: tuple[str, ...]
    origins: tuple[str, ...]

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
        )

    @classmethod
    def from_samples(cls, samples: Iterable[TrainingSample]) -> "SampleStore":
        """The store of these samples in their order; categories are numbered in order of appearance."""
        kept = list(samples)
        names = {name: i for i, name in enumerate(dict.fromkeys(sample.category for sample in kept))}
        empty = np.zeros(0, bool)
        return cls(
            tokens=np.concatenate([np.zeros(0, np.int32), *(s.tokens for s in kept)]),
            loss_bits=np.packbits(np.concatenate([empty, *(s.loss_mask for s in kept)])),
            denominator_bits=np.packbits(np.concatenate([empty, *(s.denominator_mask for s in kept)])),
            offsets=np.cumsum([0, *(len(s.tokens) for s in kept)], dtype=np.int64),
            categories=np.array([names[s.category] for s in kept], np.int32),
            category_names=tuple(names),
            origins=tuple(s.origin for s in kept),
        )


def bits_between(bits: UInt8[np.ndarray, "bytes"], start: int, stop: int) -> Bool[np.ndarray, "length"]:
    """Values start to stop of a mask in a `np.packbits` array, without unpacking the rest."""
    first = start // 8
    return np.unpackbits(bits[first : -(-stop // 8)])[start - 8 * first : stop - 8 * first].view(bool)


@dataclass(frozen=True)
class DataReport:
    """Counts of records, samples and tokens, and of what was rejected. Its text is a small table."""

    records: int  # without the rejected ones
    rejected_records: Rejections  # lines that are no record
    rejected_turns: Rejections  # assistant turns that make no sample
    samples: int
    tokens: int
    loss_tokens: int
    denominator_tokens: int  # tokens in the loss's denominator
    by_category: dict[str, int]  # samples per category
    seconds: float

    def __str__(self) -> str:
        longest = f"{self.tokens / self.samples:,.0f} tokens each" if self.samples else ""
        lines = [
            f"records   {self.records:>12,}   rejected {self.rejected_records.total:,}",
            f"samples   {self.samples:>12,}   rejected {self.rejected_turns.total:,}   {longest}".rstrip(),
            f"tokens    {self.tokens:>12,}   with loss {self.loss_tokens:,}"
            + (
                f", in the denominator {self.denominator_tokens:,}"
                if self.denominator_tokens != self.loss_tokens
                else ""
            ),
        ]
        if len(self.by_category) > 1:
            lines.append("category  " + ", ".join(f"{name} {n:,}" for name, n in self.by_category.items()))
        for title, rejections in (("records", self.rejected_records), ("turns", self.rejected_turns)):
            lines += [f"rejected {title}: {line}" for line in rejections.lines()]
        return "\n".join(lines)


def load_samples(
    paths: Iterable[str | Path] | str | Path,
    tokenizer: Any,
    *,
    mask: Mask = "last_turn",
    max_length: int,
    strict: bool = False,
    progress: bool = True,
) -> tuple[SampleStore, DataReport]:
    """Reads, renders and tokenises files of records.

    Args:
      max_length: in tokens; longer samples are rejected, never truncated.

    Raises:
      UserError: a file that cannot be read, a tokenizer that cannot render, no sample at all; with `strict`, the first
        rejection.
    """
    records, rejected = read_records(paths, strict=strict)
    return samples_from_records(
        records,
        tokenizer,
        mask=mask,
        max_length=max_length,
        strict=strict,
        progress=progress,
        rejected=rejected,
    )


def samples_from_records(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    mask: Mask = "last_turn",
    max_length: int,
    strict: bool = False,
    progress: bool = True,
    rejected: Rejections | None = None,
) -> tuple[SampleStore, DataReport]:
    """`load_samples` for records in memory; `rejected` are the rejections of their reader, for the report."""
    rejected = rejected or Rejections()
    started = time.perf_counter()
    turns = Rejections(strict=strict)
    samples: list[TrainingSample] = []
    bar = progress_bar(len(records), desc="tokenising", unit="record", transient=True, disable=not progress)
    with closing(bar):
        for start in range(0, len(records), _BATCH):
            batch = records[start : start + _BATCH]
            for record, result in zip(
                batch, render_batch(batch, tokenizer, mask=mask, max_length=max_length)
            ):
                samples += result.samples
                for reason in result.rejected:
                    turns.add(reason, record.origin)
            bar.update(len(batch))
    if not samples:
        why = "; ".join(rejected.lines() + turns.lines()) or "the files hold no records"
        raise UserError(f"no sample to train on: {why}")
    store = SampleStore.from_samples(samples)
    per_category = np.bincount(store.categories, minlength=len(store.category_names))
    return store, DataReport(
        records=len(records),
        rejected_records=rejected,
        rejected_turns=turns,
        samples=len(store),
        tokens=len(store.tokens),
        loss_tokens=int(store.loss_mask.sum()),
        denominator_tokens=int(store.denominator_mask.sum()),
        by_category=dict(zip(store.category_names, map(int, per_category))),
        seconds=time.perf_counter() - started,
    )
