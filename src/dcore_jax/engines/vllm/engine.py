"""The engine over HTTP: one or more vLLM servers, started by us or by the user, behind the `Engine` interface."""

import asyncio
import os
import queue
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dcore_jax.engines.engine import EngineStats, Request, Sample, check_request
from dcore_jax.engines.vllm.canary import Canary, ReferenceModel, coarser
from dcore_jax.engines.vllm.client import Client
from dcore_jax.engines.vllm.event_loop import Batch, EventLoopThread, Job
from dcore_jax.engines.vllm.pool import Limits, Server, ServerUnavailable
from dcore_jax.engines.vllm.protocol import PreparedRequest, overlong_sample, stats_of
from dcore_jax.engines.vllm.server import OwnServer
from dcore_jax.engines.vllm.sync import SyncName, Target, WeightSync, write_snapshot
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, ModelConfig
from dcore_jax.progress import log, progress_bar

_CONNECT_TIMEOUT = 20.0  # seconds for a server that we did not start to respond at the beginning


class ServerEngine:
    """Samples from vLLM servers that serve the same model; an `Engine`.

    Requests go to the least busy server. A server that fails gets no requests until it has recovered: it responds, holds the
    current weights and has passed the canary. Meanwhile its requests are retried on other servers, or wait. A response is
    accepted only if the server reports the current weights for all of its tokens.

    Args:
      servers: addresses as http://host:port, or `OwnServer`s, which are started here, and restarted when they end.
      config: the model's; requests and tensor names are checked against it.
      max_length: most tokens of prompt and continuation together.
      eos_token_ids: end every sample, unless its request says ignore_eos.
      dtype: what the servers compute in; weights are sent in it.
      folder: for snapshots of the weights; servers must see it under the same path.
      key: API key of servers that we did not start; by default VLLM_API_KEY.
      limits: load, timeouts and retries.
      sync: how weights get there (see `sync`).
      startup_timeout: seconds for a server that we started to serve, loading its model included.
      progress: show a bar in `generate`.
      weight_version: of the weights that the servers start with.

    Raises:
      UserError: a server that does not respond, refuses, serves shorter sequences, or does not start.
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
        startup_timeout: float = 900.0,
        progress: bool = False,
        weight_version: int = 0,
    ):
        if not servers:
            raise UserError("no vLLM server: give --engine.servers http://host:port ...")
        self.max_length, self._eos, self._config = max_length, tuple(eos_token_ids), config
        self._limits, self._folder = limits or Limits(), Path(folder)
        self._dtype, self._progress, self._startup_timeout = dtype, progress, startup_timeout
        self._version, self._run_id = weight_version, secrets.token_hex(4)
        self._target: Target | None = None
        canary = Canary(config.vocab_size)
        self._reference_model = ReferenceModel(canary)
        self._counts: Counter[str] = Counter()
        self._jobs: set[Job] = set()
        self._generating = 0
        self._done: queue.SimpleQueue[Job] = queue.SimpleQueue()
        # Why the last weight update failed, if it did: then no weights are the current ones.
        self._failed: BaseException | None = None
        key = os.environ.get("VLLM_API_KEY", "") if key is None else key
        self._servers = [
            Server(s.rstrip("/"), key) if isinstance(s, str) else Server(s.url, s.key, own=s) for s in servers
        ]
        # A recovery and a weight update may want to restore the same server at the same time.
        self._locks = {server: asyncio.Lock() for server in self._servers}
        self._client = Client(self._servers, self._limits, self._restore, _report)
        self._sync = WeightSync(self._client, config, canary, sync)
        self._loop = EventLoopThread(self._limits.queue)
        try:
            self._loop.run(self._start_up())
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
        """Number of faults of all servers, by reason."""
        return dict(self._client.pool.faults)

    @property
    def canary_gaps(self) -> dict[str, float]:
        """By server URL: mean difference of its canary from the trainer's after the last update, nats."""
        return dict(self._sync.gaps)

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See Engine.generate."""
        self._check(requests)
        bar = progress_bar(len(requests), unit="request", transient=True, disable=not self._progress)
        prepared = [self._prepare(request) for request in requests]
        batch = Batch(sum(item is not None for item in prepared))
        jobs: list[Job] = []
        self._generating += 1
        try:
            with closing(bar):
                started, shown = time.monotonic(), 0
                jobs += self._loop.start(map(self._work, filter(None, prepared)), batch)
                while not batch.wait(0.5):
                    done = len(jobs) - batch.left
                    rate = batch.tokens / max(time.monotonic() - started, 1e-9)
                    bar.set_postfix({"tokens/s": f"{rate:,.0f}"})
                    bar.update(done - shown)
                    shown = done
            for job in jobs:
                if job.error is not None:
                    raise job.error
            finished = iter(jobs)
            return [
                self._count(
                    overlong_sample(request, self._version) if item is None else next(finished).result()
                )
                for request, item in zip(requests, prepared)
            ]
        finally:
            self._generating -= 1
            self._loop.cancel(jobs)

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit. Blocks while `limits.queue` requests are in progress."""
        self._check(requests)
        prepared = [self._prepare(request) for request in requests]
        for request, item in zip(requests, prepared):
            if item is None:
                job = Job(self._done.put)
                job.sample = overlong_sample(request, self._version)
                self._jobs.add(job)
                self._done.put(job)
        for job in self._loop.start(map(self._work, filter(None, prepared)), self._done.put):
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

    def release(self) -> None:
        """See Engine.release: a server keeps its memory, on devices of its own."""

    def update_weights(self, weights: Decoder | nnx.State, version: int) -> None:
        """See Engine.update_weights. Returns when every available server holds the weights and has passed the canary.

        Raises:
          UserError: the servers' model has other tensors, or a canary differs from the trainer's.
        """
        if self._jobs or self._generating:
            raise RuntimeError(f"{len(self._jobs)} requests are in flight; poll until none is, then update")
        old, decoder = self._target, self._reference_model.decoder(weights)
        # Random at its end: an update that failed and is repeated must not be taken for the failed one.
        name = f"{self._run_id}-{version}-{secrets.token_hex(2)}"
        self._target = Target(
            version=version,
            name=name,
            snapshot=write_snapshot(decoder, self._folder / f"weights-{name}", self._dtype),
            reference=self._reference_model.reference(decoder),
            previous=None if old is None else old.reference,
            dtype=coarser(self._dtype, np.dtype(decoder.compute.dtype).name),
        )
        try:
            self._loop.run(self._push_to_all())
        except BaseException as error:
            self._failed = error
            raise
        finally:
            if old is not None:
                shutil.rmtree(old.snapshot, ignore_errors=True)
        self._version, self._failed = version, None

    def close(self) -> None:
        """See Engine.close. Ends the servers started here, keeps their logs, removes the snapshot."""
        if self._loop.closed:
            return
        self._loop.cancel(self._jobs)
        self._jobs.clear()
        try:
            self._loop.run(self._client.close())
        finally:
            for server in self._servers:
                if server.own is not None:
                    server.own.stop()
            self._loop.close()
            if self._target is not None:
                shutil.rmtree(self._target.snapshot, ignore_errors=True)

    def _check(self, requests: Sequence[Request]) -> None:
        if self._loop.closed:
            raise RuntimeError("the engine is closed")
        if self._failed is not None:
            raise self._failed
        for request in requests:
            ids, params = request.prompt_ids, request.sampling
            # Most requests pass this fast test; check_request goes through every id, to say what is wrong.
            if params.stop_token_ids or not ids or min(ids) < 0 or max(ids) >= self._config.vocab_size:
                check_request(request, self._config.vocab_size)

    def _prepare(self, request: Request) -> PreparedRequest | None:
        return PreparedRequest.from_request(request, self._eos, self.max_length, self._config.vocab_size)

    def _work(self, prepared: PreparedRequest) -> Callable[[], Coroutine[Any, Any, Sample]]:
        weights = "" if self._target is None else self._target.name
        return lambda: self._client.generate(prepared, self._version, weights)

    def _count(self, sample: Sample) -> Sample:
        self._counts.update(stats_of(sample))
        return sample

    # The coroutines below run in the event loop's thread.

    async def _start_up(self) -> None:
        await self._client.start()
        await asyncio.gather(*map(self._wait_until_serving, self._servers))

    async def _wait_until_serving(self, server: Server) -> None:
        timeout = _CONNECT_TIMEOUT if server.own is None else self._startup_timeout
        start = time.monotonic()
        while True:
            try:
                await self._restore(server)
                break
            except ServerUnavailable as error:
                if time.monotonic() - start > timeout:
                    hint = (
                        f"the log is {server.own.log}" if server.own else "is it up, and is this its address?"
                    )
                    raise UserError(f"{server.url}: {error} for {timeout:.0f} s; {hint}") from None
            await asyncio.sleep(0.5)
        self._client.pool.mark_ready(server)

    async def _push_to_all(self) -> None:
        for server in self._servers:
            server.ready = False
        servers = [server for server in self._servers if not server.abandoned_reason]
        await asyncio.gather(*map(self._push, servers))

    async def _push(self, server: Server) -> None:
        try:
            await self._restore(server)
        except ServerUnavailable as error:
            server.ready = True  # record_fault starts the recovery of ready servers only
            self._client.pool.record_fault(server, str(error))
        else:
            self._client.pool.mark_ready(server)

    async def _restore(self, server: Server) -> None:
        """Returns when the server responds, holds the target weights and generates; see Pool."""
        async with self._locks[server]:
            if server.own is not None:
                await self._ensure_running(server)
            await self._client.call(server, "GET", "/health", timeout=self._limits.probe_timeout)
            if not server.model:
                await self._discover_model(server)
            # A loop: another update may set a new target while this one is pushed.
            while (target := self._target) is not None and not await self._sync.holds(server, target):
                await self._sync.push(server, target)
            if server.consecutive_faults:
                await self._sync.check(server, self._target)

    async def _ensure_running(self, server: Server) -> None:
        """Starts our server's process if it has ended, restarts it if it hangs, and waits until it responds."""
        own, first = server.own, server.own.starts == 0
        if own.alive and not server.timeouts:
            return
        server.model, server.timeouts = "", 0
        await asyncio.to_thread(own.start)
        deadline = time.monotonic() + self._startup_timeout
        while own.alive and time.monotonic() < deadline:
            try:
                await self._client.call(server, "GET", "/health", timeout=self._limits.probe_timeout)
                return
            except ServerUnavailable:
                await asyncio.sleep(0.25)
        if first:
            what = "did not serve in time" if own.alive else "did not start"
            raise UserError(f"the vLLM server {what}{own.last_error_line()}; the log is {own.log}")
        raise ServerUnavailable("did not serve again after a restart")

    async def _discover_model(self, server: Server) -> None:
        """Asks for the name and the length that the server serves; raises UserError if they do not suit the run."""
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
    log(f"vLLM {line}")
