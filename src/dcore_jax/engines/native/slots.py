"""The host's picture of the slots: which request sits where, how far it is, and the arrays that say so to the device."""

from dataclasses import dataclass, field

import numpy as np

from dcore_jax.engines.engine import FinishReason, Request, Sample
from dcore_jax.engines.native.network import Decoded, Rows
from dcore_jax.engines.native.sampling import RowSampling

_FEWEST_STOPS = 8  # columns of the stop table; more are added when a request needs them, which compiles anew


@dataclass
class Ticket:
    """A request under way."""

    number: int  # of the engine's own, in order of arrival
    request: Request
    stops: frozenset[int]
    limit: int  # most new tokens, by max_tokens and by the engine's longest sequence
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def sample(self, weight_version: int) -> Sample:
        """The finished request."""
        reason: FinishReason = "stop" if self.ids and self.ids[-1] in self.stops else "length"
        if self.limit < 1:
            reason = "overlong"
        request = self.request
        return Sample(
            request.id,
            tuple(request.prompt_ids),
            tuple(self.ids),
            tuple(self.logprobs),
            reason,
            weight_version,
        )


class Slots:
    """`count` places, each idle or taken by a ticket."""

    def __init__(self, count: int, vocab_size: int):
        self._vocab_size = vocab_size
        self._tickets: list[Ticket | None] = [None] * count
        self._rows = {name: np.zeros(count, np.int32) for name in Rows._fields}
        self._sampling = {
            "seed": np.zeros((count, 2), np.uint32),
            "temperature": np.ones(count, np.float32),
            "top_p": np.ones(count, np.float32),
            "top_k": np.full(count, vocab_size, np.int32),
        }
        self._stops = np.full((count, _FEWEST_STOPS), -1, np.int32)

    @property
    def idle(self) -> list[int]:
        return [i for i, ticket in enumerate(self._tickets) if ticket is None]

    @property
    def busy(self) -> int:
        return sum(ticket is not None for ticket in self._tickets)

    def take(self, slot: int, ticket: Ticket) -> None:
        """Puts a ticket into an idle slot; its prompt but for the last token must be in the cache before the next dispatch."""
        request, wish = ticket.request, ticket.request.sampling
        self._tickets[slot] = ticket
        place = {
            "token": request.prompt_ids[-1],
            "position": len(request.prompt_ids) - 1,
            "step": 0,
            "left": ticket.limit,
        }
        how = {
            "seed": (wish.seed >> 32, wish.seed & 0xFFFFFFFF),
            "temperature": wish.temperature,
            "top_p": wish.top_p,
            "top_k": self._vocab_size if wish.top_k == -1 else min(wish.top_k, self._vocab_size),
        }
        for name, value in place.items():
            self._rows[name][slot] = value
        for name, setting in how.items():
            self._sampling[name][slot] = setting
        while len(ticket.stops) > self._stops.shape[1]:
            self._stops = np.concatenate([self._stops, np.full_like(self._stops, -1)], axis=1)
        self._stops[slot] = -1
        self._stops[slot, : len(ticket.stops)] = sorted(ticket.stops)

    def room_needed(self, steps: int) -> int:
        """Positions that the cache must have for `steps` more tokens in every busy slot."""
        left = self._rows["left"]
        needed = self._rows["position"] + np.minimum(left, steps)
        return int(np.max(needed, initial=0, where=left > 0))

    def arrays(self) -> tuple[Rows, RowSampling, np.ndarray]:
        """What `network.decode` wants to know; copies, as the device may still read them when the host goes on."""
        rows = Rows(**{name: array.copy() for name, array in self._rows.items()})
        sampling = RowSampling(**{name: array.copy() for name, array in self._sampling.items()})
        return rows, sampling, self._stops.copy()

    def advance(self, decoded: Decoded) -> list[Ticket]:
        """Takes over what a dispatch sampled (arrays on the host); returns the finished tickets, whose slots are idle again."""
        finished = []
        for slot, ticket in enumerate(self._tickets):
            count = int(decoded.sampled[slot])
            if ticket is None or not count:
                continue
            ticket.ids += decoded.tokens[slot, :count].tolist()
            ticket.logprobs += decoded.logprobs[slot, :count].tolist()
            self._rows["token"][slot] = ticket.ids[-1]
            self._rows["position"][slot] += count
            self._rows["step"][slot] += count
            self._rows["left"][slot] = decoded.left[slot]
            if not decoded.left[slot]:
                self._tickets[slot] = None
                finished.append(ticket)
        return finished
