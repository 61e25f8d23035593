"""The slots as the host sees them: which request each holds, how far it is, and the arrays that tell the device."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from dcore_jax.engines.engine import FinishReason, Request, Sample
from dcore_jax.engines.native.network import Decoded, Rows
from dcore_jax.engines.native.sampling import RowSampling

_MIN_STOP_COLUMNS = (
    8  # of the table of stop ids; doubled when a request needs more, which compiles a new program
)


@dataclass
class ActiveRequest:
    """A request that waits or is being decoded, with what was sampled so far."""

    number: int  # by which the engine knows it, in order of arrival
    request: Request
    stop_ids: frozenset[int]
    max_tokens: (
        int  # what the request asks for, or what the engine's longest sequence leaves; below 1: overlong
    )
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def sample(self, weight_version: int) -> Sample:
        """The Sample of a finished request."""
        reason: FinishReason = "stop" if self.ids and self.ids[-1] in self.stop_ids else "length"
        if self.max_tokens < 1:
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
    """`count` slots, each idle or assigned to a request."""

    def __init__(self, count: int, vocab_size: int):
        self._vocab_size = vocab_size
        self._active: list[ActiveRequest | None] = [None] * count
        self._rows = {name: np.zeros(count, np.int32) for name in Rows._fields}
        self._sampling = {
            "seed": np.zeros((count, 2), np.uint32),
            "temperature": np.ones(count, np.float32),
            "top_p": np.ones(count, np.float32),
            "top_k": np.full(count, vocab_size, np.int32),
        }
        self._stop_ids = np.full((count, _MIN_STOP_COLUMNS), -1, np.int32)

    @property
    def active(self) -> list[ActiveRequest]:
        """The requests in slots."""
        return [active for active in self._active if active is not None]

    @property
    def idle(self) -> list[int]:
        return [i for i, active in enumerate(self._active) if active is None]

    @property
    def busy(self) -> int:
        return sum(active is not None for active in self._active)

    def assign(self, slot: int, active: ActiveRequest) -> None:
        """Assigns an idle slot. The prompt without its last token must be in the cache before the next dispatch."""
        request, params = active.request, active.request.sampling
        self._active[slot] = active
        row = {
            "token": request.prompt_ids[-1],
            "position": len(request.prompt_ids) - 1,
            "step": 0,
            "left": active.max_tokens,
        }
        sampling = {
            "seed": (params.seed >> 32, params.seed & 0xFFFFFFFF),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": self._vocab_size if params.top_k == -1 else min(params.top_k, self._vocab_size),
        }
        for name, value in row.items():
            self._rows[name][slot] = value
        for name, setting in sampling.items():
            self._sampling[name][slot] = setting
        while len(active.stop_ids) > self._stop_ids.shape[1]:
            self._stop_ids = np.concatenate([self._stop_ids, np.full_like(self._stop_ids, -1)], axis=1)
        self._stop_ids[slot] = -1
        self._stop_ids[slot, : len(active.stop_ids)] = sorted(active.stop_ids)

    def release(self, request_ids: Collection[str | int]) -> None:
        """Makes the slots of these requests idle again, whatever they have sampled."""
        for slot, active in enumerate(self._active):
            if active is not None and active.request.id in request_ids:
                self._active[slot] = None
                self._rows["left"][slot] = 0

    def positions_needed(self, steps: int) -> int:
        """Capacity that the cache needs for `steps` more tokens in every busy slot."""
        left = self._rows["left"]
        needed = self._rows["position"] + np.minimum(left, steps)
        return int(np.max(needed, initial=0, where=left > 0))

    def arrays(self) -> tuple[Rows, RowSampling, np.ndarray]:
        """State, sampling and stop ids of all slots, for `network.decode`.

        Copies: the device may still read them while the host already writes the next state.
        """
        rows = Rows(**{name: array.copy() for name, array in self._rows.items()})
        sampling = RowSampling(**{name: array.copy() for name, array in self._sampling.items()})
        return rows, sampling, self._stop_ids.copy()

    def advance(self, decoded: Decoded) -> list[ActiveRequest]:
        """Records what a dispatch sampled (arrays on the host); returns the finished requests, whose slots are idle again."""
        finished = []
        for slot, active in enumerate(self._active):
            count = int(decoded.sampled[slot])
            if active is None or not count:
                continue
            active.ids += decoded.tokens[slot, :count].tolist()
            active.logprobs += decoded.logprobs[slot, :count].tolist()
            self._rows["token"][slot] = active.ids[-1]
            self._rows["position"][slot] += count
            self._rows["step"][slot] += count
            self._rows["left"][slot] = decoded.left[slot]
            if not decoded.left[slot]:
                self._active[slot] = None
                finished.append(active)
        return finished
