"""The batches of benchmarks/sft.py: the same tokens for every contestant, in the form each of them takes."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dcore_jax.data.packing import packed_batches
from dcore_jax.data.store import SampleStore, load_samples
from dcore_jax.metrics import training_flops
from dcore_jax.models import ModelConfig

FIELDS = ("tokens", "positions", "segment_ids", "loss_mask", "denominator_mask")


class Case(NamedTuple):
    """One table: a vocabulary, and full rows of random tokens or, with `records`, real ones."""

    name: str
    vocab: int
    rows: int
    length: int
    records: bool = False


class Work(NamedTuple):
    """What one contestant does in each of its steps, counted before it starts. Entries are one per batch."""

    loss_tokens: list[int]
    flops: list[float]  # useful ones: padding and recomputation do not count


def write_full_rows(case: Case, config: ModelConfig, folder: Path) -> dict[str, Work]:
    """One batch of random rows, each one sequence; every token but the first carries loss."""
    shape = (case.rows, case.length)
    tokens = np.random.default_rng(0).integers(3, case.vocab, shape).astype(np.int32)
    everywhere = np.ones(shape, bool)
    positions = np.broadcast_to(np.arange(case.length, dtype=np.int32), shape)
    ours = dict(zip(FIELDS, (tokens, positions, everywhere.astype(np.int32), everywhere, everywhere)))
    write(folder / "ours.npz", [ours])
    peer = {"tokens": tokens.astype(np.int64), "labels": tokens.astype(np.int64)}
    write(folder / "torch.npz", [peer])
    write(folder / "tunix.npz", [peer])
    loss_tokens = case.rows * (case.length - 1)
    flops = training_flops(config, tokens.size, loss_tokens, int((positions + 1).sum()))
    return dict.fromkeys(("ours", "torch", "tunix"), Work([loss_tokens], [flops]))


def write_records(
    case: Case, data: str, padded_records: int, config: ModelConfig, folder: Path
) -> dict[str, Work]:
    """The real records: packed for ours; some at a time, padded to the longest of them, for torch.

    Ids are folded into the vocabulary, which changes neither lengths nor the work done.
    """
    sys.path.append(
        str(Path(__file__).parents[1] / "tests")
    )  # the real Qwen vocabulary lies beside the tests
    from qwen_tokenizer import qwen_tokenizer

    store, report = load_samples(data, qwen_tokenizer(), max_length=case.length, progress=False)
    ours = [
        dict(zip(FIELDS, batch))
        for batch in packed_batches(
            store, rows=case.rows, pack_length=case.length, seed=0, epochs=1, prefetch=0
        )
    ]
    ours = ours[:-1]  # the last one is not full
    padded = padded_batches(store, padded_records)
    for batch in ours + padded:
        batch["tokens"] = batch["tokens"] % case.vocab
        if "labels" in batch:
            batch["labels"] = np.where(batch["labels"] < 0, -100, batch["labels"] % case.vocab)
    write(folder / "ours.npz", ours)
    write(folder / "torch.npz", padded)
    useful = sum(int(b["attention_mask"].sum()) for b in padded) / sum(b["tokens"].size for b in padded)
    fill = float(np.mean([(b["segment_ids"] > 0).mean() for b in ours]))
    print(
        f"\n{report.samples} records, {report.tokens / report.samples:,.0f} tokens each, "
        f"{report.loss_tokens / report.tokens:.0%} with loss; padded to the longest of {padded_records}, {useful:.0%} of the "
        f"tokens are useful; packed into rows of {case.length}, {fill:.0%}."
    )

    def count(batches: list[dict[str, np.ndarray]]) -> Work:
        loss_tokens, flops = [], []
        for batch in batches:
            held = batch["segment_ids"] > 0 if "segment_ids" in batch else batch["attention_mask"] > 0
            at = batch.get("positions", np.broadcast_to(np.arange(held.shape[1]), held.shape))
            loss = batch["loss_mask"] if "loss_mask" in batch else batch["labels"] >= 0
            loss_tokens.append(int(loss.sum()))
            flops.append(training_flops(config, int(held.sum()), loss_tokens[-1], int((at[held] + 1).sum())))
        return Work(loss_tokens, flops)

    return {"ours": count(ours), "torch": count(padded)}


def padded_batches(store: SampleStore, records: int) -> list[dict[str, np.ndarray]]:
    """Shuffled records, `records` at a time, padded on the right to the longest; labels -100 where no loss is."""
    batches = []
    order = np.random.default_rng(0).permutation(len(store))
    for start in range(0, len(order) - records + 1, records):
        samples = [store[int(i)] for i in order[start : start + records]]
        longest = max(len(sample.tokens) for sample in samples)
        tokens, mask, labels = np.zeros((3, len(samples), longest), np.int64)
        labels -= 100
        for row, sample in enumerate(samples):
            size = len(sample.tokens)
            tokens[row, :size], mask[row, :size] = sample.tokens, 1
            labels[row, :size] = np.where(sample.loss_mask, sample.tokens, -100)
        batches.append({"tokens": tokens, "attention_mask": mask, "labels": labels})
    return batches


def write(path: Path, batches: list[dict[str, np.ndarray]]) -> None:
    np.savez(
        path, **{f"{i}/{name}": value for i, batch in enumerate(batches) for name, value in batch.items()}
    )
