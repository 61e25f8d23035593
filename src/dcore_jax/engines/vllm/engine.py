"""Engines over HTTP: one or many vLLM servers behind the engine interface, theirs or our own."""

import asyncio
import os
import queue
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tqdm import tqdm

from dcore_jax.engines.engine import EngineStats, Request, Sample, check_request
from dcore_jax.engines.vllm.answers import Question, overlong, tally
from dcore_jax.engines.vllm.bridge import Batch, Bridge, Job
from dcore_jax.engines.vllm.canary import Canary, Reference, coarser, reference_function
from dcore_jax.engines.vllm.client import Client
from dcore_jax.engines.vllm.pool import Ill, Limits, Server
from dcore_jax.engines.vllm.server import OwnServer
from dcore_jax.engines.vllm.sync import Pusher, SyncName, Target, write_snapshot
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, ModelConfig

_REFUSED = 20.0  # seconds for a server that is not ours to answer at the start


class ServerEngine:
    """Samples from vLLM servers that hold the same model; an `Engine`.

    Requests go to the least busy server. A server that fails is left out until it is well, holds the current weights and has
    passed the canary; its requests go to others or wait. An answer counts if it names the current weights for all of its tokens.

    Args:
      servers: addresses as http://host:port, or servers of our own, which are started here and again when they end.
      config: the model's; ids and weights are held against it.
      max_length: most tokens of prompt and continuation together.
      eos_token_ids: end every sample, unless it says ignore_eos.
      dtype: what the servers compute in; weights are sent in it.
      folder: for snapshots of the weights; servers must see it under the same path.
      key: API key of servers that are not ours; by default VLLM_API_KEY.
      sync: how weights get there (see `sync`).
      progress: show a bar while `generate` waits.

    Raises:
      UserError: a server that does not answer, refuses, serves another length, or does not come up.
    """

    def __init__(
        self,
        servers: Sequence[str | OwnServer],
        config: ModelConfig,
        *,
        max_length: int,
        eos_token_ids: Sequence[int] = (),
        dtype: str = "float32",
        folder: str | Path = "vllm",
        key: str | None = None,
        limits: Limits | None = None,
        sync: SyncName = "transfer",
        startup: float = 900.0,
        progress: bool = False,
        weight_version: int = 0,
    ):
        if not servers:
            raise UserError("no vLLM server: give --server http://host:port, once for each")
        self.max_length, self._eos, self._config = max_length, tuple(eos_token_ids), config
        self._limits, self._folder = limits or Limits(), Path(folder)
        self._dtype, self._progress, self._startup = dtype, progress, startup
        self._version, self._run = weight_version, secrets.token_hex(4)
        self._target: Target | None = None
        self._canary = Canary(config.vocab_size)
        self._graph: nnx.GraphDef | None = None
        self._reference_of: Callable[[Any], Reference] | None = None
        self._counts: Counter[str] = Counter()
        self._jobs: set[Job] = set()
        self._generating = 0
        self._done: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._failed: BaseException | None = None  # the last update did not get through
        key = os.environ.get("VLLM_API_KEY", "") if key is None else key
        self._servers = [
            Server(s.rstrip("/"), key) if isinstance(s, str) else Server(s.url, s.key, own=s) for s in servers
        ]
        self._locks = {server: asyncio.Lock() for server in self._servers}
        self._client = Client(self._servers, self._limits, self._heal, _report)
        self._pusher = Pusher(self._client, config, self._canary, sync)
        self._bridge = Bridge(self._limits.queue)
        try:
            self._bridge.run(self._bring_up())
        except BaseException:
            self.close()
            raise

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def in_flight(self) -> int:
        return len(self._jobs)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(**{name: self._counts[name] for name in EngineStats._fields})

    @property
    def faults(self) -> dict[str, int]:
        """What servers did instead of answering, by reason."""
        return dict(self._client.pool.faults)

    @property
    def canary_gaps(self) -> dict[str, float]:
        """By server, how far its canary was from the trainer's after the last update: mean nats."""
        return dict(self._pusher.gaps)

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See Engine.generate."""
        self._check(requests)
        bar = tqdm(total=len(requests), unit="req", delay=2, leave=False, disable=not self._progress)
        questions = [self._question(request) for request in requests]
        batch = Batch(sum(question is not None for question in questions))
        jobs: list[Job] = []
        self._generating += 1
        try:
            with bar:
                jobs += self._bridge.start(map(self._work, filter(None, questions)), batch)
                while not batch.wait(0.5):
                    bar.update(len(jobs) - batch.left - bar.n)
                    rate = batch.tokens / max(bar.format_dict["elapsed"], 1e-9)
                    bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            for job in jobs:
                if job.error is not None:
                    raise job.error
            answered = iter(jobs)
            return [
                self._count(overlong(request, self._version) if question is None else next(answered).result())
                for request, question in zip(requests, questions)
            ]
        finally:
            self._generating -= 1
            self._bridge.cancel(jobs)

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit; waits where `limits.queue` requests are under way."""
        self._check(requests)
        questions = [self._question(request) for request in requests]
        for request, question in zip(requests, questions):
            if question is None:
                job = Job(self._done.put)
                job.sample = overlong(request, self._version)
                self._jobs.add(job)
                self._done.put(job)
        for job in self._bridge.start(map(self._work, filter(None, questions)), self._done.put):
            self._jobs.add(job)

    def poll(self) -> list[Sample]:
        """See Engine.poll."""
        samples: list[Sample] = []
        while self._jobs:
            try:
                job = self._done.get(timeout=0.2) if not samples else self._done.get_nowait()
            except queue.Empty:
                break
            self._jobs.discard(job)
            samples.append(self._count(job.result()))
        return samples

    def update_weights(self, weights: Decoder | nnx.State, version: int) -> None:
        """See Engine.update_weights. Returns when every server that is well holds the weights and has passed the canary.

        Raises:
          UserError: the servers' model has other tensors, or a canary differs from the trainer's.
        """
        if self._jobs or self._generating:
            raise RuntimeError(f"{len(self._jobs)} requests are in flight; poll until none is, then update")
        old, decoder = self._target, self._decoder(weights)
        name = f"{self._run}-{version}-{secrets.token_hex(2)}"
        self._target = Target(
            version=version,
            name=name,
            snapshot=write_snapshot(decoder, self._folder / f"weights-{name}", self._dtype),
            reference=self._reference(decoder),
            before=None if old is None else old.reference,
            dtype=coarser(self._dtype, np.dtype(decoder.compute.dtype).name),
        )
        try:
            self._bridge.run(self._push_everywhere())
        except BaseException as error:
            self._failed = error
            raise
        finally:
            if old is not None:
                shutil.rmtree(old.snapshot, ignore_errors=True)
        self._version, self._failed = version, None

    def close(self) -> None:
        """See Engine.close: ends the servers that are ours, keeps their logs, removes the snapshot."""
        if self._bridge.closed:
            return
        self._bridge.cancel(self._jobs)
        self._jobs.clear()
        try:
            self._bridge.run(self._client.close())
        finally:
            for server in self._servers:
                if server.own is not None:
                    server.own.stop()
            self._bridge.close()
            if self._target is not None:
                shutil.rmtree(self._target.snapshot, ignore_errors=True)

    def _check(self, requests: Sequence[Request]) -> None:
        if self._bridge.closed:
            raise RuntimeError("the engine is closed")
        if self._failed is not None:
            raise self._failed
        for request in requests:
            ids = request.prompt_ids
            if (
                request.sampling.stop_token_ids
                or not ids
                or min(ids) < 0
                or max(ids) >= self._config.vocab_size
            ):
                check_request(request, self._config.vocab_size)  # says what is wrong; slower

    def _question(self, request: Request) -> Question | None:
        return Question.of(request, self._eos, self.max_length, self._config.vocab_size)

    def _work(self, question: Question) -> Callable[[], Coroutine[Any, Any, Sample]]:
        weights = "" if self._target is None else self._target.name
        return lambda: self._client.ask(question, self._version, weights)

    def _count(self, sample: Sample) -> Sample:
        self._counts.update(tally(sample))
        return sample

    def _decoder(self, weights: Decoder | nnx.State) -> Decoder:
        if isinstance(weights, Decoder):
            self._graph = self._graph or nnx.split(weights)[0]
            return weights
        if self._graph is None:
            raise RuntimeError("the first update needs a Decoder; later ones may be its nnx.state")
        return nnx.merge(self._graph, weights)

    def _reference(self, decoder: Decoder) -> Reference:
        graph, params = nnx.split(decoder)
        if self._reference_of is None:
            self._reference_of = reference_function(self._canary, graph)
        return self._reference_of(params)

    # What follows runs in the client's loop.

    async def _bring_up(self) -> None:
        await self._client.start()
        await asyncio.gather(*map(self._first_contact, self._servers))

    async def _first_contact(self, server: Server) -> None:
        patience = _REFUSED if server.own is None else self._startup
        start = time.monotonic()
        while True:
            try:
                await self._heal(server)
                break
            except Ill as illness:
                if time.monotonic() - start > patience:
                    hint = (
                        f"the log is {server.own.log}" if server.own else "is it up, and is this its address?"
                    )
                    raise UserError(f"{server.url}: {illness} for {patience:.0f} s; {hint}") from None
            await asyncio.sleep(0.5)
        self._client.pool.well(server)

    async def _push_everywhere(self) -> None:
        for server in self._servers:
            server.ready = False
        await asyncio.gather(*(self._push(server) for server in self._servers if not server.lost))

    async def _push(self, server: Server) -> None:
        try:
            await self._heal(server)
        except Ill as illness:
            server.ready = True  # as far as the pool knew; the fault makes it ill
            self._client.pool.fault(server, str(illness))
        else:
            self._client.pool.well(server)

    async def _heal(self, server: Server) -> None:
        """Returns when the server serves, holds the target and generates; see Pool."""
        async with self._locks[server]:
            if server.own is not None:
                await self._revive(server)
            await self._client.call(server, "GET", "/health", timeout=self._limits.probe_timeout)
            if not server.model:
                await self._look_at(server)
            while (target := self._target) is not None and not await self._pusher.holds(server, target):
                await self._pusher.push(server, target)
            if server.streak:
                await self._pusher.check(server, self._target)

    async def _revive(self, server: Server) -> None:
        own, first = server.own, server.own.starts == 0
        if own.alive and not server.hung:
            return
        server.model, server.hung = "", 0
        await asyncio.to_thread(own.start)
        deadline = time.monotonic() + self._startup
        while own.alive and time.monotonic() < deadline:
            try:
                await self._client.call(server, "GET", "/health", timeout=self._limits.probe_timeout)
                return
            except Ill:
                await asyncio.sleep(0.25)
        if first:
            what = "did not come up in time" if own.alive else "did not start"
            raise UserError(f"the vLLM server {what}{own.last_words()}; the log is {own.log}")
        raise Ill("did not come up again")

    async def _look_at(self, server: Server) -> None:
        found = await self._client.call(server, "GET", "/v1/models")
        try:
            model = found["data"][0]
            server.model, length = str(model["id"]), model.get("max_model_len")
        except (TypeError, KeyError, IndexError):
            raise UserError(f"{server.url}: names no model; is this a vLLM server?") from None
        if length is not None and length < self.max_length:
            server.model = ""
            raise UserError(
                f"{server.url}: serves {length} tokens of prompt and continuation, the run needs {self.max_length}; start it "
                f"with --max-model-len {self.max_length}"
            )


def _report(line: str) -> None:
    tqdm.write(f"vLLM {line}")
