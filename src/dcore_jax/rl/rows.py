"""A step's samples as packed rows: a prompt once, the responses of its group after it, each a branch that sees the prompt alone.

    prompt A | response A1 | response A2 | prompt B | response B1 | ...       one row
    branch 0 | 1           | 2           | 0        | 1           | ...
    segment 1 ........................... | segment 2 ................

A pass of the network takes one row for each device. Rows have one of few lengths, so that a steady state compiles nothing: as
many passes as possible are full (`row_length`), and what is left is balanced over the rows of the last one, whose length is the
smallest that holds it. A group is divided between rows where that fills them; its prompt is then repeated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Int

from dcore_jax.engines import Sample
from dcore_jax.errors import UserError

# shared: a prompt once for its group. separate: each response with its prompt, where attention cannot share prefixes.
RowMode = Literal["shared", "separate"]
# Lengths of a row, in sixteenths of the longest: the next one is never longer by more than a half, nor, above half, by a quarter.
_SIXTEENTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
_SLOT_PARTS = 4  # a row's slots for response tokens, in quarters of its length
_LANES = 128  # what lengths are multiples of, where rows are long


class Rows(NamedTuple):
    """One pass: what the network reads, and where the log-probabilities of the responses' tokens are found in it."""

    tokens: Int[Array | np.ndarray, "rows length"]
    positions: Int[Array | np.ndarray, "rows length"]  # a response's continue its prompt's
    segment_ids: Int[Array | np.ndarray, "rows length"]  # 1, 2, ... along a row; 0 is padding
    branches: Int[Array | np.ndarray, "rows length"] | None  # 0 on prompts; None where no prompt is shared
    predictors: Int[
        Array | np.ndarray, "rows slots"
    ]  # the position whose hidden state predicts the slot's token
    targets: Int[Array | np.ndarray, "rows slots"]
    places: Int[
        Array | np.ndarray, "rows slots"
    ]  # response * tokens + t in `[responses, tokens]`; past its end: an empty slot


class RowCounts(NamedTuple):
    """Of any number of passes."""

    positions: int
    tokens: int  # positions that hold one
    slots: int
    responses: int  # slots that hold a token


@dataclass
class _Piece:
    """Responses of one group that stand in one row."""

    group: int
    prompt: int  # tokens
    responses: list[tuple[int, int]]  # (index of the response, tokens), longest first

    @property
    def size(self) -> int:
        return self.prompt + sum(size for _, size in self.responses)


@dataclass
class _Row:
    free: int
    pieces: list[_Piece] = field(default_factory=list)

    def add(self, piece: _Piece) -> None:
        self.pieces.append(piece)
        self.free -= piece.size


def row_lengths(row_length: int) -> tuple[int, ...]:
    """The lengths that rows of at most `row_length` tokens take, ascending."""
    lanes = _LANES if row_length >= 16 * _LANES else 16
    whole = -(-row_length // lanes) * lanes
    return tuple(sorted({-(-whole * part // (16 * lanes)) * lanes for part in _SIXTEENTHS}))


def pack_rows(
    groups: Sequence[Sequence[Sample]],
    *,
    tokens: int,
    row_length: int,
    rows: int = 1,
    mode: RowMode = "shared",
    first: int = 0,
    one_length: bool = False,
) -> list[Rows]:
    """The passes of these groups; samples without tokens are in none.

    Args:
      groups: of samples with the same prompt.
      tokens: columns of the `[responses, tokens]` arrays that `places` points into.
      row_length: tokens of the longest row; at least those of a prompt and its longest response.
      rows: of a pass, one for each device.
      first: number of the first response.
      one_length: every row is the longest, with a slot for each of its tokens, so that all passes are one program.

    Raises:
      UserError: a prompt with a response that is longer than a row.
    """
    samples = [sample for group in groups for sample in group]
    starts = np.cumsum([first, *map(len, groups)])
    pieces = [
        _Piece(g, len(group[0].prompt_ids), sorted(found, key=lambda r: (-r[1], r[0])))
        for g, group in enumerate(groups)
        if (found := [(int(starts[g]) + i, len(s.ids)) for i, s in enumerate(group) if s.ids])
    ]
    if mode == "separate":
        pieces = [_Piece(p.group, p.prompt, [response]) for p in pieces for response in p.responses]
    by_index = dict(enumerate(samples, first))
    lengths = row_lengths(row_length)[-1:] if one_length else row_lengths(row_length)
    return [
        _arrays(planned, length, by_index, tokens, len(samples) + first, mode, all_slots=one_length)
        for length, planned in _plan(pieces, lengths, rows)
    ]


def count_rows(passes: Sequence[Rows], responses: int, tokens: int) -> RowCounts:
    """How full these passes are, for arrays of `responses` x `tokens`."""
    return RowCounts(
        sum(rows.tokens.size for rows in passes),
        sum(int(np.count_nonzero(rows.segment_ids)) for rows in passes),
        sum(rows.places.size for rows in passes),
        sum(int(np.count_nonzero(np.asarray(rows.places) < responses * tokens)) for rows in passes),
    )


def _plan(pieces: list[_Piece], lengths: tuple[int, ...], rows: int) -> Iterator[tuple[int, list[_Row]]]:
    """Passes of `rows` rows each, with the length of their rows."""
    left = _largest_first(pieces)
    for piece in left:
        if (size := piece.prompt + piece.responses[0][1]) > lengths[-1]:
            raise UserError(
                f"a prompt with a response of {size} tokens is longer than a row; set packing.length to at least {size}"
            )
    while left:
        longest, total = max(p.prompt + p.responses[0][1] for p in left), sum(p.size for p in left)
        for length in lengths:
            if length >= longest and (length * rows >= total or length == lengths[-1]):
                filled, rest = _fill(left, length, rows)
                if not rest or length == lengths[-1]:
                    break
        yield length, filled
        left = rest


def _fill(pieces: list[_Piece], length: int, rows: int) -> tuple[list[_Row], list[_Piece]]:
    """Rows of these pieces, the largest first, each where it fits best; what is longer than a row is divided, and so is, at the
    end, what fits in no row as a whole.

    Returns:
      The rows, and the pieces that are in none of them, the largest first.
    """
    filled, queue, rest = [_Row(length) for _ in range(rows)], list(pieces), []
    while queue:
        piece = queue.pop(0)
        fitting = [row for row in filled if row.free >= piece.size]
        if fitting:
            min(fitting, key=lambda row: row.free).add(piece)
        elif piece.size <= length or not (kept := _divide(piece, max(filled, key=lambda row: row.free))):
            rest.append(piece)
        else:
            queue = _largest_first([*queue, kept])
    for row in sorted(filled, key=lambda row: -row.free):
        rest = [kept for piece in rest if (kept := _divide(piece, row) or piece).responses]
    return filled, _largest_first(rest)


def _largest_first(pieces: Sequence[_Piece]) -> list[_Piece]:
    return sorted(pieces, key=lambda piece: (-piece.size, piece.group, piece.responses))


def _divide(piece: _Piece, row: _Row) -> _Piece | None:
    """Adds to a row the responses of a piece that fit beside its prompt, and returns the others, if any, as a piece.

    None where nothing is added: in a row that is in use a prompt is repeated only for responses that outweigh it.
    """
    room, taken, kept = row.free - piece.prompt, [], []
    for response in piece.responses:
        if response[1] <= room:
            taken.append(response)
            room -= response[1]
        else:
            kept.append(response)
    if not taken or (kept and row.pieces and sum(size for _, size in taken) < piece.prompt):
        return None
    row.add(_Piece(piece.group, piece.prompt, taken))
    return _Piece(piece.group, piece.prompt, kept)


def _arrays(
    planned: list[_Row],
    length: int,
    samples: dict[int, Sample],
    tokens: int,
    responses: int,
    mode: RowMode,
    *,
    all_slots: bool,
) -> Rows:
    used = max(sum(size for piece in row.pieces for _, size in piece.responses) for row in planned)
    part = -(-length // _SLOT_PARTS)
    slots = length if all_slots else -(-used // part) * part
    flat, shape = np.zeros((4, len(planned), length), np.int32), (len(planned), slots)
    predictors, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    places = np.full(shape, responses * tokens, np.int32)
    ids, positions, segments, branches = flat
    for r, row in enumerate(planned):
        at = slot = 0
        for segment, piece in enumerate(row.pieces, 1):
            start = at
            prompt = samples[piece.responses[0][0]].prompt_ids
            at += len(prompt)
            ids[r, start:at], positions[r, start:at], last = prompt, np.arange(len(prompt)), at - 1
            for branch, (index, size) in enumerate(piece.responses, 1):
                here, end = slice(at, at + size), slice(slot, slot + size)
                ids[r, here] = targets[r, end] = samples[index].ids
                positions[r, here] = len(prompt) + np.arange(size)
                branches[r, here] = branch
                predictors[r, end] = [last, *range(at, at + size - 1)]
                places[r, end] = index * tokens + np.arange(size)
                at, slot = at + size, slot + size
            segments[r, start:at] = segment
    return Rows(ids, positions, segments, branches if mode == "shared" else None, predictors, targets, places)
