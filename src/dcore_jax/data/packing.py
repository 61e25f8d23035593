"""Sequence packing: a deterministic, checkpointable grain pipeline from samples to rows that never splits a sample.

    order of each epoch -> windows arranged to fill rows -> grain's packer -> rows from the store -> batches -> a thread

The packer packs indices into the store's flat arrays, not tokens, so one packed array stands for tokens and both
masks. The only module of the package that imports grain.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from dcore_jax.data.store import SampleStore
from dcore_jax.errors import UserError

Packing = Literal["first_fit", "best_fit", "next_fit"]
Order = Literal["shuffle", "round_robin"]
PACKINGS: tuple[Packing, ...] = ("first_fit", "best_fit", "next_fit")
ORDERS: tuple[Order, ...] = ("shuffle", "round_robin")
DEFAULT_BINS = 128
_PADDING = -1  # an index into the store that no token has


class PackedBatch(NamedTuple):
    """Packed rows of whole samples. Padding has segment id 0, token 0, position 0 and False in both masks."""

    tokens: Int32[np.ndarray, "rows length"]
    positions: Int32[np.ndarray, "rows length"]  # from 0 within each sample
    segment_ids: Int32[np.ndarray, "rows length"]  # 1, 2, ... along a row; 0 is padding
    loss_mask: Bool[np.ndarray, "rows length"]  # True at a predicted token that carries loss
    denominator_mask: Bool[np.ndarray, "rows length"]  # True at a predicted token in the loss's denominator


class WeightedBatch(NamedTuple):
    """A `PackedBatch` of a store with weights, as every batch of it is."""

    tokens: Int32[np.ndarray, "rows length"]
    positions: Int32[np.ndarray, "rows length"]
    segment_ids: Int32[np.ndarray, "rows length"]
    loss_mask: Bool[np.ndarray, "rows length"]
    denominator_mask: Bool[np.ndarray, "rows length"]
    weights: Float32[np.ndarray, "rows length"]  # of a predicted token, in loss and denominator


def packed_batches(
    store: SampleStore,
    *,
    rows: int,
    pack_length: int,
    seed: int,
    epochs: int | None,
    first_epoch: int = 0,
    packing: Packing = "first_fit",
    order: Order = "shuffle",
    bins: int = DEFAULT_BINS,
    prefetch: int = 2,
) -> grain.IterDataset:
    """Global batches of `[rows, pack_length]`, the same on every process and for any mesh.

    Each epoch visits every sample once, in an order drawn from (seed, epoch): see `epoch_order`. A row may hold the
    end of one epoch and the start of the next. The last batch is filled up with empty rows.

    `iter()` of the result has `get_state()` and `set_state()`; the state is a JSON-serialisable dict, and an iterator
    restored from it yields exactly the remaining batches.

    Args:
      epochs: epoch that is no longer visited, counted from 0; None: without end.
      first_epoch: epoch that is visited first.
      packing: `first_fit` or `best_fit` into `bins` open rows, all of which are emitted, shuffled, when a sample fits in
        none; the samples of about `bins` rows are first put in an order that fills rows (see `row_filling_order`).
        `next_fit`, the release's, has one open row and keeps the order.
      prefetch: batches that a background thread prepares in advance; 0: no thread.

    Raises:
      UserError: a sample longer than a row, which is named; settings out of range.
    """
    if rows < 1:
        raise UserError(f"a batch needs at least 1 row, not {rows}")
    _check_arguments(store, pack_length, seed, epochs, packing, order, bins)
    epoch_range = (first_epoch, epochs)
    packed = _packed_indices(store, pack_length, seed, epoch_range, packing, order, bins)

    def gather(packed_rows: Sequence[dict[str, np.ndarray]]) -> PackedBatch | WeightedBatch:
        return _gather(store, packed_rows, rows, pack_length)

    batches = packed.batch(rows, drop_remainder=False, batch_fn=gather)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)


def count_batches(
    store: SampleStore,
    *,
    rows: int,
    pack_length: int,
    seed: int,
    epochs: int,
    first_epoch: int = 0,
    packing: Packing = "first_fit",
    order: Order = "shuffle",
    bins: int = DEFAULT_BINS,
) -> int:
    """How many batches `packed_batches` yields with these arguments, computed from lengths without packing."""
    _check_arguments(store, pack_length, seed, epochs, packing, order, bins)
    epoch_range = (first_epoch, epochs)
    source = _Epochs(store, seed, epoch_range, order, pack_length, _arranged_rows(packing, bins))
    open_rows = 1 if packing == "next_fit" else bins
    free = np.full(open_rows, pack_length)
    emitted = 0
    for length in source.lengths():
        room = np.where(free >= length, free, pack_length + 1) if packing == "best_fit" else free >= length
        row = int(np.argmin(room) if packing == "best_fit" else np.argmax(room))
        if free[row] < length:  # it fits in none: all are emitted, and it starts the next group
            emitted, row = emitted + open_rows, 0
            free[:] = pack_length
        free[row] -= length
    return -(-(emitted + int(np.sum(free < pack_length))) // rows)


def packing_fill(batch: PackedBatch | WeightedBatch) -> float:
    """The share of a batch's positions that are not padding, in [0, 1]."""
    return float(np.mean(batch.segment_ids > 0))


def epoch_order(
    store: SampleStore, seed: int, epoch: int, order: Order = "shuffle"
) -> Int64[np.ndarray, "samples"]:
    """The order in which one epoch visits the samples, a permutation of their indices.

    Args:
      order: `shuffle`: uniformly at random. `round_robin`: each category shuffled, then one sample of each category in
        turn, until the category is exhausted (the D-CORE release's order).
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(store))
    if order == "shuffle":
        return shuffled
    # A sample's turn is its rank among its own category's samples; a stable sort by turn, then category.
    category = store.categories[shuffled]
    turn = np.empty(len(store), np.int64)
    for c in range(len(store.category_names)):
        mine = category == c
        turn[mine] = np.arange(mine.sum())
    return shuffled[np.lexsort((category, turn))]


def row_filling_order(
    lengths: Int64[np.ndarray, "samples"], pack_length: int
) -> Int64[np.ndarray, "samples"]:
    """A permutation of the samples after which first-fit leaves little padding.

    Row by row: the longest remaining sample, then the samples whose total is nearest to the free space: a subset sum over
    bit sets, where bit s of `reach[k]` says that some of the first k samples have s tokens together. First-fit on this
    order never needs more rows than were planned.
    """
    left = np.argsort(-lengths, kind="stable").tolist()
    order: list[int] = []
    while left:
        longest = left.pop(0)
        room = pack_length - int(lengths[longest])
        within = (1 << (room + 1)) - 1
        reach = [1]
        for sample in left:
            reach.append(reach[-1] | (reach[-1] << int(lengths[sample])) & within)
            if reach[-1] >> room:
                break  # the row can be filled to the last token
        total = reach[-1].bit_length() - 1
        chosen = []
        for k in range(len(reach) - 1, 0, -1):
            if not reach[k - 1] >> total & 1:
                chosen.append(k - 1)
                total -= int(lengths[left[k - 1]])
        order += [longest, *(left[k] for k in chosen)]
        for k in chosen:  # from the back, so that earlier indices stay valid
            del left[k]
    return np.array(order, np.int64)


class _Epochs:
    """Random access over all epochs: item i holds the token indices of the i-th sample.

    Args:
      arrange: rows per window; the samples of each window are reordered to fill rows. 0: every epoch keeps its order.
    """

    def __init__(
        self,
        store: SampleStore,
        seed: int,
        epochs: tuple[int, int | None],  # the first, and the one that is no longer visited
        order: Order,
        pack_length: int,
        arrange: int,
    ):
        self._store, self._seed, self._order = store, seed, order
        self._first, end = epochs
        self._end = sys.maxsize // len(store) if end is None else end
        self._pack_length, self._arrange = pack_length, arrange
        # Cached, because reading is sequential; a few entries, because iterators in threads of their own may be elsewhere.
        self._windows = functools.lru_cache(maxsize=4)(self._windows)  # type: ignore[method-assign]
        self._window = functools.lru_cache(maxsize=4)(self._window)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self._store) * (self._end - self._first)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, at = divmod(int(index), len(self._store))
        epoch += self._first
        _, starts = self._windows(epoch)
        window = int(np.searchsorted(starts, at, side="right")) - 1
        sample = self._window(epoch, window)[at - starts[window]]
        return {"at": np.arange(self._store.offsets[sample], self._store.offsets[sample + 1])}

    def lengths(self) -> Iterator[int]:
        """Tokens per sample, in the order of the items."""
        for epoch in range(self._first, self._end):
            for window in range(len(self._windows(epoch)[1])):
                yield from self._store.lengths[self._window(epoch, window)].tolist()

    def _windows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples in the epoch's order, and where in it each window starts."""
        visits = epoch_order(self._store, self._seed, epoch, self._order)
        if not self._arrange:
            return visits, np.zeros(1, np.int64)
        before = np.cumsum(self._store.lengths[visits]) - self._store.lengths[visits]
        window = before // (self._arrange * self._pack_length)
        return visits, np.flatnonzero(np.diff(window, prepend=-1))

    def _window(self, epoch: int, window: int) -> np.ndarray:
        visits, starts = self._windows(epoch)
        stop = starts[window + 1] if window + 1 < len(starts) else len(visits)
        samples = visits[starts[window] : stop]
        if not self._arrange:
            return samples
        return samples[row_filling_order(self._store.lengths[samples], self._pack_length)]


def _packed_indices(
    store: SampleStore,
    pack_length: int,
    seed: int,
    epochs: tuple[int, int | None],
    packing: Packing,
    order: Order,
    bins: int,
) -> grain.IterDataset:
    """Rows `{at, at_positions, at_segment_ids}` of `[pack_length]`; `at` holds indices into the store's flat arrays."""
    # Reading a sample is an array slice: reader threads would only make it slower.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    source = _Epochs(store, seed, epochs, order, pack_length, _arranged_rows(packing, bins))
    samples = grain.MapDataset.source(source).to_iter_dataset(reading)
    packer = (
        grain.experimental.BestFitPackIterDataset
        if packing == "best_fit"
        else grain.experimental.FirstFitPackIterDataset
    )
    return packer(
        samples,
        length_struct={"at": pack_length},
        padding_struct={"at": _PADDING},
        num_packing_bins=1 if packing == "next_fit" else bins,
        seed=seed,
        # A group's first rows are the fullest and its last ones the emptiest: shuffled, batches are equally full.
        shuffle_bins=packing != "next_fit",
    )


def _arranged_rows(packing: Packing, bins: int) -> int:
    return 0 if packing == "next_fit" else bins


def _check_arguments(
    store: SampleStore,
    pack_length: int,
    seed: int,
    epochs: int | None,
    packing: str,
    order: str,
    bins: int,
) -> None:
    if packing not in PACKINGS:
        raise UserError(f"packing must be one of {', '.join(PACKINGS)}, not {packing!r}")
    if order not in ORDERS:
        raise UserError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    if bins < 1 or seed < 0 or (epochs is not None and epochs < 1):
        raise UserError(
            f"need bins >= 1, seed >= 0 and epochs >= 1, not bins={bins}, seed={seed}, epochs={epochs}"
        )
    if not len(store):
        raise UserError("no samples to pack")
    longest = int(np.argmax(store.lengths))
    if store.lengths[longest] > pack_length:
        raise UserError(
            f"{store.origins[longest]}: a sample of {store.lengths[longest]} tokens does not fit in pack_length="
            f"{pack_length}; load with max_length={pack_length} or less"
        )


def _gather(
    store: SampleStore, packed_rows: Sequence[dict[str, np.ndarray]], rows: int, pack_length: int
) -> PackedBatch | WeightedBatch:
    """The batch of packed rows of indices; missing rows are padding."""
    at = np.full((rows, pack_length), _PADDING, np.int64)
    positions, segment_ids = np.zeros((2, rows, pack_length), np.int32)
    for i, row in enumerate(packed_rows):
        at[i], positions[i], segment_ids[i] = row["at"], row["at_positions"], row["at_segment_ids"]
    is_token = at != _PADDING
    index = np.where(is_token, at, 0)

    def bits(packed: np.ndarray) -> np.ndarray:
        # One bit of a `np.packbits` array, whose first bit is the most significant one.
        return ((packed[index // 8] >> (7 - index % 8)) & 1).astype(bool) & is_token

    packed = PackedBatch(
        tokens=np.where(is_token, store.tokens[index], 0),
        positions=positions,
        segment_ids=segment_ids,
        loss_mask=bits(store.loss_bits),
        denominator_mask=bits(store.denominator_bits),
    )
    if store.weights is None:
        return packed
    return WeightedBatch(*packed, np.where(is_token, store.weights[index], np.float32(0)))
