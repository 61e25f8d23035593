"""The engine's host side: a queue of requests, a fixed number of slots, and the dispatches between them.

A dispatch samples up to `steps_per_dispatch` tokens in every slot as one program; then finished slots are given to waiting
requests. Programs depend on shapes alone (slots, a few prompt lengths, a few cache lengths), so a steady state compiles nothing.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dcore_jax.engines.engine import EngineStats, Request, Sample, check_request
from dcore_jax.engines.native import cache as kv
from dcore_jax.engines.native.network import Network, RolloutWeights, decode, prefill, rollout_weights
from dcore_jax.engines.native.slots import Slots, Ticket
from dcore_jax.errors import UserError
from dcore_jax.mesh import BATCH_AXES
from dcore_jax.models import Decoder
from dcore_jax.weights import shardings

_KEPT_PREFILLS = 4  # prompts of a group mostly arrive together: their keys and values are computed once

_new_blocks = partial(jax.jit, static_argnums=(0, 1, 2, 3))(kv.zeros)
_inserted = partial(jax.jit, donate_argnums=0)(kv.insert)


class NativeEngine:
    """Samples from a Decoder in this process, on its own devices; an `Engine`.

    A sample depends on the weights, the prompt, its SamplingParams and the number of slots, not on the requests beside it.

    Args:
      decoder: the model; its compute dtype is the engine's. Weights are copied, cast and cut once.
      slots: requests that are decoded at the same time. A free slot costs as much as a busy one.
      max_length: most tokens of prompt and continuation together; by default what the model was made for. The cache grows towards
        it only as far as the requests need.
      eos_token_ids: end every sample, unless it says ignore_eos.
      mesh: slots are split over its data and fsdp axes, heads over tensor; by default the mesh in use (`jax.set_mesh`).
      steps_per_dispatch: tokens sampled before the host looks again.
      first_length: positions that the cache has from the start; `max_length` here means one decode program and no growth.
      weight_version: of the decoder's weights.

    Raises:
      UserError: slots or heads that the mesh cannot split, or more positions than the model has.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        slots: int = 32,
        max_length: int | None = None,
        eos_token_ids: Sequence[int] = (),
        mesh: Mesh | None = None,
        steps_per_dispatch: int = 32,
        first_length: int = 0,
        weight_version: int = 0,
    ):
        config = decoder.config
        self._network = Network(
            config, replace(decoder.compute, param_dtype=decoder.compute.dtype, remat="none")
        )
        self._shapes = _shapes(nnx.state(decoder, nnx.Param))
        most = config.max_position_embeddings
        self.max_length = most if max_length is None else max_length
        if not 2 <= self.max_length <= most:
            raise UserError(
                f"max_length={max_length} is not possible: the model's max_position_embeddings is {most}, and prompt and "
                "continuation need a token each"
            )
        if slots < 1 or steps_per_dispatch < 1:
            raise UserError(f"slots={slots} and steps_per_dispatch={steps_per_dispatch} must be at least 1")
        self._mesh = mesh or _mesh_in_use()
        self._prefill_rows = 1
        if self._mesh is not None:
            shardings(config, self._mesh)  # raises where an axis does not divide the model
            self._prefill_rows = math.prod(self._mesh.shape[axis] for axis in BATCH_AXES)
            if slots % self._prefill_rows:
                raise UserError(
                    f"slots={slots} cannot be split over data and fsdp, {self._prefill_rows} devices; "
                    f"use a multiple of {self._prefill_rows}"
                )
        self._slots = Slots(slots, config.vocab_size)
        self._slot_count, self._steps = slots, steps_per_dispatch
        self._first_length = min(first_length, self.max_length)
        self._eos = frozenset(eos_token_ids)
        self._cache = self._no_blocks = (kv.LayerCache((), ()),) * config.num_layers
        self._prefilled: OrderedDict[tuple[int, ...], tuple[kv.Cache, int]] = OrderedDict()
        self._queue: deque[Ticket] = deque()
        self._overlong: list[Ticket] = []
        self._ready: list[Sample] = []  # finished beside a `generate`, to be polled
        self._next_number = 0
        self._counts: Counter[str] = Counter()
        self._weights: RolloutWeights | None = None
        self.update_weights(decoder, weight_version)

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def in_flight(self) -> int:
        return len(self._queue) + self._slots.busy + len(self._overlong) + len(self._ready)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(**self._counts)

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See Engine.generate. A prompt of `max_length` tokens or more comes back with finish reason `overlong`."""
        numbers = self._enqueue(requests)
        wanted = set(numbers)
        done: dict[int, Sample] = {}
        while len(done) < len(numbers):
            for ticket in self._advance():
                if ticket.number in wanted:
                    done[ticket.number] = ticket.sample(self._version)
                else:
                    self._ready.append(ticket.sample(self._version))
        return [done[number] for number in numbers]

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit."""
        self._enqueue(requests)

    def poll(self) -> list[Sample]:
        """See Engine.poll: admits waiting requests, runs one dispatch, returns what finished."""
        ready, self._ready = self._ready, []
        return ready + [ticket.sample(self._version) for ticket in self._advance()]

    def update_weights(self, weights: Decoder | nnx.State, version: int) -> None:
        """See Engine.update_weights."""
        if self.in_flight:
            raise RuntimeError(
                f"{self.in_flight} requests are in flight; poll until none is, then update the weights"
            )
        state = nnx.state(weights, nnx.Param) if isinstance(weights, Decoder) else weights
        if _shapes(state) != self._shapes:
            raise UserError(
                f"weights of version {version} have other names or shapes than the engine's model"
            )
        # Old keys and values belong to old weights, and a NaN among them would outlive the row it came from.
        self._weights, self._cache = None, self._no_blocks
        self._prefilled.clear()
        with self._in_mesh():
            self._weights = rollout_weights(self._network, state, self._mesh)
        self._version = version

    def close(self) -> None:
        """See Engine.close."""
        self._weights, self._cache = None, self._no_blocks
        self._prefilled.clear()
        self._queue.clear()
        self._slots = Slots(self._slot_count, self._network.config.vocab_size)

    def _in_mesh(self) -> AbstractContextManager:
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _enqueue(self, requests: Sequence[Request]) -> list[int]:
        for request in requests:
            check_request(request, self._network.config.vocab_size)
        numbers = []
        for request in requests:
            wish = request.sampling
            ticket = Ticket(
                number=self._next_number,
                request=request,
                stops=frozenset(wish.stop_token_ids) | (frozenset() if wish.ignore_eos else self._eos),
                limit=min(wish.max_tokens, self.max_length - len(request.prompt_ids)),
            )
            self._next_number += 1
            numbers.append(ticket.number)
            (self._queue if ticket.limit > 0 else self._overlong).append(ticket)
        return numbers

    def _advance(self) -> list[Ticket]:
        """Admits, runs one dispatch, and returns the tickets that finished."""
        if self._weights is None:
            raise RuntimeError("the engine is closed")
        finished, self._overlong = self._overlong, []
        with self._in_mesh():
            self._admit()
            if self._slots.busy:
                finished += self._dispatch()
        for ticket in finished:
            self._counts["requests"] += 1
            self._counts["prompt_tokens"] += len(ticket.request.prompt_ids)
            self._counts["generated_tokens"] += len(ticket.ids)
            self._counts[ticket.sample(self._version).finish_reason] += 1
        return finished

    def _dispatch(self) -> list[Ticket]:
        # With requests waiting, a few finished slots are worth an interruption.
        enough = max(1, self._slot_count // 16) if self._queue else self._slot_count + 1
        self._make_room(self._slots.room_needed(self._steps))
        rows, sampling, stops = self._slots.arrays()
        self._cache, decoded = decode(
            self._network, self._steps, self._weights, self._cache, rows, sampling, stops, np.int32(enough)
        )
        decoded = jax.device_get(decoded)
        sampled = np.arange(self._steps) < decoded.sampled[:, None]
        if not np.isfinite(decoded.logprobs, where=sampled, out=np.ones_like(sampled)).all():
            raise UserError(
                f"weights of version {self._version} give logits that are not finite; go back to an earlier checkpoint"
            )
        return self._slots.advance(decoded)

    def _make_room(self, positions: int) -> None:
        sizes = kv.block_sizes(max(positions, self._first_length))
        have = len(self._cache[0].keys)
        if len(sizes) > have:
            config, dtype = self._network.config, self._network.compute.dtype
            more = _new_blocks(config, self._slot_count, tuple(sizes[have:]), dtype)
            self._cache = kv.joined(self._cache, more)
        # Grows at once, shrinks only where that halves the work of every token.
        elif 2 * sum(sizes) <= kv.room(self._cache):
            self._cache = kv.first_blocks(self._cache, len(sizes))

    def _admit(self) -> None:
        """Gives idle slots to waiting requests, and puts their prompts, all but the last token, into the cache."""
        places: dict[tuple[int, ...], list[int]] = {}
        for slot in self._slots.idle[: len(self._queue)]:
            ticket = self._queue.popleft()
            self._slots.take(slot, ticket)
            if prefix := tuple(ticket.request.prompt_ids[:-1]):
                places.setdefault(prefix, []).append(slot)
        if not places:
            return
        self._make_room(self._slots.room_needed(self._steps))
        # What is still kept goes first: the prefills that follow may push it out.
        for prefix in [prefix for prefix in places if prefix in self._prefilled]:
            self._prefilled.move_to_end(prefix)
            self._insert({prefix: places.pop(prefix)})
        for call in self._prefill_calls(list(places)):
            self._run_prefill(call)
            self._insert({prefix: places[prefix] for prefix in call})

    def _prefill_calls(self, prefixes: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Prefixes that go through the model together: of one bucket, as many as the mesh has row shards."""
        by_bucket: dict[int, list[tuple[int, ...]]] = {}
        for prefix in prefixes:
            by_bucket.setdefault(kv.bucket(len(prefix)), []).append(prefix)
        rows = self._prefill_rows
        return [group[i : i + rows] for group in by_bucket.values() for i in range(0, len(group), rows)]

    def _run_prefill(self, prefixes: list[tuple[int, ...]]) -> None:
        tokens = np.zeros((self._prefill_rows, kv.bucket(len(prefixes[0]))), np.int32)
        for row, prefix in enumerate(prefixes):
            tokens[row, : len(prefix)] = prefix
            self._counts["prefilled_tokens"] += len(prefix)
        made = prefill(self._network, self._weights, tokens)
        for row, prefix in enumerate(prefixes):
            self._prefilled[prefix] = (made, row)
        while len(self._prefilled) > _KEPT_PREFILLS * self._prefill_rows:
            self._prefilled.popitem(last=False)

    def _insert(self, places: dict[tuple[int, ...], list[int]]) -> None:
        """Copies prefilled prefixes of one prefill call to their slots."""
        pairs = [(self._prefilled[prefix][1], slot) for prefix, slots in places.items() for slot in slots]
        table = np.zeros((2, self._slot_count), np.int32)
        table[:, : len(pairs)] = np.transpose(pairs)
        made = self._prefilled[next(iter(places))][0]
        touched = len(made[0].keys)
        head, tail = kv.first_blocks(self._cache, touched), kv.after_blocks(self._cache, touched)
        self._cache = kv.joined(_inserted(head, made, table[0], table[1], np.int32(len(pairs))), tail)


def _mesh_in_use() -> Mesh | None:
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def _shapes(state: nnx.State) -> dict[tuple, tuple[int, ...]]:
    return {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
