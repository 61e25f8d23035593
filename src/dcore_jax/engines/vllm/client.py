"""Asks servers for samples: bounded, retried elsewhere, each answer held against what was asked.

Lives in one event loop. A request is one task, and resolves once: an answer that comes too late finds its connection closed.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp

from dcore_jax.engines.engine import Sample
from dcore_jax.engines.vllm.answers import BadAnswer, Question
from dcore_jax.engines.vllm.pool import Ill, Limits, Pool, Server
from dcore_jax.errors import UserError

# What a connection can do instead of answering.
BROKEN = (aiohttp.ClientError, OSError, asyncio.TimeoutError, asyncio.IncompleteReadError)


class Client:
    """One client for a list of servers.

    Args:
      heal: see Pool.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        limits: Limits,
        heal: Callable[[Server], Awaitable[None]],
        report: Callable[[str], None],
    ):
        self.limits = limits
        self.pool = Pool(servers, limits, heal, report)
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task | None = None
        self._patience = aiohttp.ClientTimeout(total=limits.timeout)

    async def start(self) -> None:
        """Opens the connections."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, force_close=False)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=True
        )
        self._watch = asyncio.create_task(self._watch_busy())

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self.pool.close()
        if self._session is not None:
            await self._session.close()

    async def call(
        self, server: Server, method: str, path: str, body: Any = None, *, timeout: float = 60.0
    ) -> Any:
        """One call of a server's own interface; its JSON, or None where it answers with nothing.

        Raises:
          Ill: no connection, no answer in time, or a fault of the server's.
          UserError: the server understood and refused.
        """
        assert self._session is not None
        try:
            async with self._session.request(
                method,
                server.url + path,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": "application/json", **server.headers},
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                content = await response.read()
                status = response.status
        except BROKEN as error:
            raise Ill(_fault(error)) from None
        if status >= 500 or status == 429:
            raise Ill(f"HTTP {status} from {path}: {_message(content)}")
        if status >= 400:
            raise UserError(_refusal(server, path, status, content))
        try:
            return json.loads(content) if content.strip() else None
        except ValueError:
            raise Ill(f"no JSON from {path}") from None

    async def ask(self, question: Question, version: int, weights: str = "") -> Sample:
        """The sample of one question, by the weights that servers call `weights` (empty: whichever they have).

        Raises:
          UserError: refused, out of attempts, or no server is left.
        """
        server, reasons = None, []
        for attempt in range(1, self.limits.attempts + 1):
            server = await self.pool.take(avoid=server)
            life = server.life
            try:
                sample = await self._attempt(server, question, version, weights)
                server.streak = 0
                return sample
            except (Ill, BadAnswer) as error:
                reason = str(error)
            reasons.append(f"{server.url}: {reason}")
            self.pool.fault(server, reason, life)
            await asyncio.sleep(self.pool.backoff(attempt))
        raise UserError(
            f"request {question.request.id!r} failed {self.limits.attempts} times, last {reasons[-1]}; see the servers' logs"
        )

    async def _attempt(self, server: Server, question: Question, version: int, weights: str) -> Sample:
        task = asyncio.current_task()
        assert task is not None and self._session is not None
        server.asking.add(task)
        try:
            async with self._session.post(
                server.url + "/inference/v1/generate",
                data=json.dumps(question.body(server.model)),
                headers={"Content-Type": "application/json", **server.headers},
                timeout=self._patience,
            ) as response:
                content = await response.read()
        except BROKEN as error:
            # Alive for all we know, and silent for as long as a request may take.
            server.hung += isinstance(error, asyncio.TimeoutError)
            raise Ill(_fault(error)) from None
        except asyncio.CancelledError:
            if task in server.asking:
                raise
            task.uncancel()  # by the watch, which has taken it out
            raise Ill("hangs: alive, but no answer") from None
        finally:
            server.asking.discard(task)
            self.pool.release(server)
        if response.status >= 500 or response.status == 429:
            raise Ill(f"HTTP {response.status}")
        if response.status >= 400:
            raise UserError(_refusal(server, f"request {question.request.id!r}", response.status, content))
        try:
            payload = json.loads(content)
        except ValueError:
            raise BadAnswer("an answer that is no JSON") from None
        return question.sample(payload, version, weights)

    async def _watch_busy(self) -> None:
        """Asks busy servers whether they live; takes the requests of one that says nothing twice."""
        silent: dict[Server, int] = {}
        while True:
            await asyncio.sleep(self.limits.probe_every)
            busy = [server for server in self.pool.servers if server.asking]
            for server, alive in zip(busy, await asyncio.gather(*map(self._alive, busy))):
                silent[server] = 0 if alive else silent.get(server, 0) + 1
                if silent[server] >= 2:
                    silent[server] = 0
                    server.hung += 1
                    tasks, server.asking = server.asking, set()
                    for task in tasks:
                        task.cancel()

    async def _alive(self, server: Server) -> bool:
        try:
            await self.call(server, "GET", "/health", timeout=self.limits.probe_timeout)
        except (Ill, UserError):
            return False
        return True


def _fault(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection"
    return f"connection broke ({type(error).__name__})"


def _message(content: bytes) -> str:
    """The human part of a server's error."""
    text = content.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text).split())[:300]


def _refusal(server: Server, what: str, status: int, content: bytes) -> str:
    message = _message(content)
    if status == 403:
        return f"{server.url}: refuses {what}: {message}; start it with --enable-scale-out"
    if status == 401:
        return (
            f"{server.url}: refuses the API key; set VLLM_API_KEY to the key that the server was started with"
        )
    if status == 404 and what.startswith("/"):
        return (
            f"{server.url}: has no {what}; start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls "
            "dcore_jax.engines.vllm.extension.WorkerExtension, or use no weight updates"
        )
    return f"{server.url}: refuses {what}: {message}"
