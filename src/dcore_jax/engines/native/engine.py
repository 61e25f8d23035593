"""The native engine's host side: continuous batching over a fixed number of slots.

One turn admits waiting requests to idle slots (prefill, then a copy into the cache) and runs one dispatch, a program that
samples up to `steps_per_dispatch` tokens in every slot. Programs depend on shapes only (slots, a few prompt lengths, a few cache
lengths), so after a while nothing is compiled any more.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dcore_jax.engines.engine import EngineStats, Request, Sample, check_request
from dcore_jax.engines.native import cache as kv
from dcore_jax.engines.native.network import Network, RolloutWeights, decode, prefill, rollout_weights
from dcore_jax.engines.native.slots import ActiveRequest, Slots
from dcore_jax.errors import UserError
from dcore_jax.lora import adapter_scale
from dcore_jax.mesh import BATCH_AXES
from dcore_jax.models import Decoder
from dcore_jax.weights import shardings

# Prefills that are kept, per row of a prefill: members of a group share a prompt, which is computed once if they come together.
KEPT_PREFILLS = 4

_new_blocks = partial(jax.jit, static_argnums=(0, 1, 2, 3))(kv.zeros)
_inserted = partial(jax.jit, donate_argnums=0)(kv.insert)


class SlotSteps(NamedTuple):
    """How busy an engine's slots were."""

    busy: int
    total: int

    @property
    def share(self) -> float:
        """Of slots that were busy, on average over the decoding steps."""
        return self.busy / max(self.total, 1)


class NativeEngine:
    """Samples from a Decoder in this process, on its own devices; an `Engine`.

    A sample depends on the weights, the prompt, its SamplingParams and the number of slots, not on the requests batched with it.

    Args:
      decoder: the model; its compute dtype is the engine's. Its weights are copied, cast and unstacked at every update, and its
        adapters merged.
      slots: sequences decoded at the same time. An idle slot costs as much as a busy one.
      max_length: most tokens of prompt and continuation together; by default the model's context_length. The cache grows
        only as far as the requests need.
      eos_token_ids: end every sample, unless its request says ignore_eos.
      mesh: slots are split over its data and fsdp axes, heads over tensor; by default the mesh in use (`jax.set_mesh`).
      steps_per_dispatch: most tokens per slot between two admissions of waiting requests.
      first_length: the cache's capacity at the start; with `max_length` there is one decode program and no growth.
      weight_version: of the decoder's weights.

    Raises:
      UserError: slots or heads that the mesh cannot split, or max_length beyond the model's positions.
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
        self._shapes, self._adapter_scale = _shapes(nnx.state(decoder, nnx.Param)), adapter_scale(decoder)
        most = config.context_length
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
        self._cache = self._empty_cache = (kv.LayerCache((), ()),) * config.num_layers
        # By prompt without its last token: the prefill that holds it, and its row there. Least recently used first.
        self._prefilled: OrderedDict[tuple[int, ...], tuple[kv.Cache, int]] = OrderedDict()
        self._queue: deque[ActiveRequest] = deque()
        self._overlong: list[ActiveRequest] = []
        self._ready: list[Sample] = []  # finished during a `generate`, to be polled
        self._next_number = 0
        self._counts: Counter[str] = Counter()
        self._busy_steps = self._slot_steps = 0
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

    @property
    def occupancy(self) -> SlotSteps:
        """Decoding steps of all slots since it was created, and those in which a slot had a request."""
        return SlotSteps(self._busy_steps, self._slot_steps)

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See Engine.generate. A prompt of `max_length` tokens or more comes back with finish reason `overlong`."""
        numbers = self._enqueue(requests)
        wanted = set(numbers)
        done: dict[int, Sample] = {}
        while len(done) < len(numbers):
            for active in self._advance():
                if active.number in wanted:
                    done[active.number] = active.sample(self._version)
                else:
                    self._ready.append(active.sample(self._version))
        return [done[number] for number in numbers]

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit."""
        self._enqueue(requests)

    def poll(self) -> list[Sample]:
        """See Engine.poll. Admits waiting requests and runs one dispatch.

        The dispatch ends when a sixteenth of the slots has finished, so that who polls can ask again for those slots.
        """
        ready, self._ready = self._ready, []
        return ready + [active.sample(self._version) for active in self._advance(may_refill=True)]

    def sampled_so_far(self) -> dict[str | int, tuple[int, ...]]:
        """By request id, the ids sampled so far of each request that is being decoded."""
        return {active.request.id: tuple(active.ids) for active in self._slots.active}

    def logprobs_so_far(self) -> dict[str | int, tuple[float, ...]]:
        """By request id, the log-probabilities of `sampled_so_far`."""
        return {active.request.id: tuple(active.logprobs) for active in self._slots.active}

    def cancel(self, request_ids: Collection[str | int]) -> None:
        """Drops submitted requests, waiting or half done; `poll` never returns them. Their slots are free at once."""
        ids = set(request_ids)
        self._slots.release(ids)
        self._queue = deque(active for active in self._queue if active.request.id not in ids)
        self._overlong = [active for active in self._overlong if active.request.id not in ids]
        self._ready = [sample for sample in self._ready if sample.request_id not in ids]

    def update_weights(self, weights: Decoder | nnx.State, version: int) -> None:
        """See Engine.update_weights.

        Raises:
          UserError: other names or shapes than the engine's model.
        """
        if self.in_flight:
            raise RuntimeError(
                f"{self.in_flight} requests are in flight; poll until none is, then update the weights"
            )
        state = nnx.state(weights, nnx.Param) if isinstance(weights, Decoder) else weights
        if _shapes(state) != self._shapes:
            raise UserError(
                f"weights of version {version} have other names or shapes than the engine's model"
            )
        # The cache holds keys and values of the old weights, and a NaN among them would reach later requests of the same slot:
        # masked scores are replaced, but a masked value still counts as 0 * NaN = NaN.
        self._weights, self._cache = None, self._empty_cache
        self._prefilled.clear()
        with self._in_mesh():
            self._weights = rollout_weights(self._network, state, self._mesh, self._adapter_scale)
        self._version = version

    def release(self) -> None:
        """See Engine.release: weights, cache and kept prefills are dropped, all of its device memory."""
        if self.in_flight:
            raise RuntimeError(f"{self.in_flight} requests are in flight; poll until none is, then release")
        self._weights, self._cache = None, self._empty_cache
        self._prefilled.clear()

    def close(self) -> None:
        """See Engine.close."""
        self._weights, self._cache = None, self._empty_cache
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
            params = request.sampling
            active = ActiveRequest(
                number=self._next_number,
                request=request,
                stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos),
                max_tokens=min(params.max_tokens, self.max_length - len(request.prompt_ids)),
            )
            self._next_number += 1
            numbers.append(active.number)
            (self._queue if active.max_tokens > 0 else self._overlong).append(active)
        return numbers

    def _advance(self, *, may_refill: bool = False) -> list[ActiveRequest]:
        """Admits waiting requests and runs one dispatch; returns the requests that finished.

        Args:
          may_refill: the caller may submit more when it sees what finished.
        """
        if self._weights is None:
            raise RuntimeError("the engine is closed, or released and without new weights")
        finished, self._overlong = self._overlong, []
        with self._in_mesh():
            self._admit()
            if self._slots.busy:
                finished += self._dispatch(early=bool(self._queue) or may_refill)
        for active in finished:
            self._counts["requests"] += 1
            self._counts["prompt_tokens"] += len(active.request.prompt_ids)
            self._counts["generated_tokens"] += len(active.ids)
            self._counts[active.sample(self._version).finish_reason] += 1
        return finished

    def _dispatch(self, *, early: bool) -> list[ActiveRequest]:
        # Where requests wait, or may come, a few finished slots are worth an early end; else the dispatch runs all of its steps.
        finish_threshold = max(1, self._slot_count // 16) if early else self._slot_count + 1
        self._resize_cache(self._slots.positions_needed(self._steps))
        rows, sampling, stop_ids = self._slots.arrays()
        self._cache, decoded = decode(
            self._network,
            self._steps,
            self._weights,
            self._cache,
            rows,
            sampling,
            stop_ids,
            np.int32(finish_threshold),
        )
        decoded = jax.device_get(decoded)
        sampled = np.arange(self._steps) < decoded.sampled[:, None]
        if not np.isfinite(decoded.logprobs, where=sampled, out=np.ones_like(sampled)).all():
            raise UserError(
                f"weights of version {self._version} give logits that are not finite; go back to an earlier checkpoint"
            )
        self._busy_steps += int(decoded.sampled.sum())
        self._slot_steps += self._slot_count * int(decoded.sampled.max())
        return self._slots.advance(decoded)

    def _resize_cache(self, positions: int) -> None:
        """Gives the cache the capacity for so many positions."""
        sizes = kv.block_sizes(max(positions, self._first_length))
        blocks = len(self._cache[0].keys)
        if len(sizes) > blocks:
            config, dtype = self._network.config, self._network.compute.dtype
            more = _new_blocks(config, self._slot_count, tuple(sizes[blocks:]), dtype)
            self._cache = kv.append_blocks(self._cache, more)
        # It grows at once, but shrinks only where that halves every token's attention: each size is a program of its own.
        elif 2 * sum(sizes) <= kv.capacity(self._cache):
            self._cache = kv.take_blocks(self._cache, len(sizes))

    def _admit(self) -> None:
        """Assigns idle slots to waiting requests, and puts their prompts, without the last token, into the cache.

        The last token is the first input of decoding, so that every sampled token comes from the same program.
        """
        slots_of: dict[tuple[int, ...], list[int]] = {}  # by prompt without its last token
        for slot in self._slots.idle[: len(self._queue)]:
            active = self._queue.popleft()
            self._slots.assign(slot, active)
            if prefix := tuple(active.request.prompt_ids[:-1]):
                slots_of.setdefault(prefix, []).append(slot)
        if not slots_of:
            return
        self._resize_cache(self._slots.positions_needed(self._steps))
        # Prefixes that are still kept come first: the prefills that follow may evict them.
        for prefix in [prefix for prefix in slots_of if prefix in self._prefilled]:
            self._prefilled.move_to_end(prefix)
            self._insert({prefix: slots_of.pop(prefix)})
        for batch in self._prefill_batches(list(slots_of)):
            self._run_prefill(batch)
            self._insert({prefix: slots_of[prefix] for prefix in batch})

    def _prefill_batches(self, prefixes: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Prefixes that are prefilled together: of one bucket, one for each shard of the mesh's rows."""
        by_bucket: dict[int, list[tuple[int, ...]]] = {}
        for prefix in prefixes:
            by_bucket.setdefault(kv.bucket(len(prefix)), []).append(prefix)
        rows = self._prefill_rows
        return [group[i : i + rows] for group in by_bucket.values() for i in range(0, len(group), rows)]

    def _run_prefill(self, prefixes: list[tuple[int, ...]]) -> None:
        """Prefills prefixes of one bucket and keeps the result, evicting the least recently used ones."""
        tokens = np.zeros((self._prefill_rows, kv.bucket(len(prefixes[0]))), np.int32)
        for row, prefix in enumerate(prefixes):
            tokens[row, : len(prefix)] = prefix
            self._counts["prefilled_tokens"] += len(prefix)
        prefilled = prefill(self._network, self._weights, tokens)
        for row, prefix in enumerate(prefixes):
            self._prefilled[prefix] = (prefilled, row)
        while len(self._prefilled) > KEPT_PREFILLS * self._prefill_rows:
            self._prefilled.popitem(last=False)

    def _insert(self, slots_of: dict[tuple[int, ...], list[int]]) -> None:
        """Copies prefixes of one prefill into the cache, at the slots that want them."""
        pairs = [(self._prefilled[prefix][1], slot) for prefix, slots in slots_of.items() for slot in slots]
        # Padded to the number of slots: one program, however many copies.
        rows_and_slots = np.zeros((2, self._slot_count), np.int32)
        rows_and_slots[:, : len(pairs)] = np.transpose(pairs)
        prefilled = self._prefilled[next(iter(slots_of))][0]
        # Only as many blocks as the prefill has are passed in, so the program does not depend on the cache's length.
        blocks = len(prefilled[0].keys)
        head, tail = kv.take_blocks(self._cache, blocks), kv.drop_blocks(self._cache, blocks)
        head = _inserted(head, prefilled, rows_and_slots[0], rows_and_slots[1], np.int32(len(pairs)))
        self._cache = kv.append_blocks(head, tail)


def _mesh_in_use() -> Mesh | None:
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def _shapes(state: nnx.State) -> dict[tuple, tuple[int, ...]]:
    return {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
