"""The HTTP client of vLLM servers: a bounded number of requests, timeouts, retries on other servers, validated responses.

Lives in one event loop. A request is one task and is resolved once: the connection of an attempt that timed out is closed, so
that a late response is never read.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp

from dcore_jax.engines.engine import Sample
from dcore_jax.engines.vllm.pool import Limits, Pool, Server, ServerUnavailable
from dcore_jax.engines.vllm.protocol import InvalidResponse, PreparedRequest
from dcore_jax.engines.vllm.server import EXTENSION
from dcore_jax.errors import UserError

# What a connection can raise in place of a response.
CONNECTION_ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError, asyncio.IncompleteReadError)
# Failed health checks in a row after which a server with requests in flight counts as hung.
_FAILED_PROBES = 2


class Client:
    """One client for a list of servers; the arguments are the Pool's."""

    def __init__(
        self,
        servers: Sequence[Server],
        limits: Limits,
        restore: Callable[[Server], Awaitable[None]],
        report: Callable[[str], None],
    ):
        self.limits = limits
        self.pool = Pool(servers, limits, restore, report)
        self._session: aiohttp.ClientSession | None = None
        self._watchdog: asyncio.Task | None = None
        self._request_timeout = aiohttp.ClientTimeout(total=limits.request_timeout)

    async def start(self) -> None:
        """Opens the session and starts the watchdog."""
        # limit=0: the pool bounds the requests of each server already.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, force_close=False)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=True
        )
        self._watchdog = asyncio.create_task(self._watch_busy_servers())

    async def close(self) -> None:
        """Ends the watchdog and all recoveries, and closes the connections."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        await self.pool.close()
        if self._session is not None:
            await self._session.close()

    async def call(
        self, server: Server, method: str, path: str, body: Any = None, *, timeout: float = 60.0
    ) -> Any:
        """One call of a server's control interface, without retries; its JSON, or None for an empty response.

        Raises:
          ServerUnavailable: no connection, a timeout, or a fault of the server's (HTTP 429 or 5xx).
          UserError: the server refused (HTTP 4xx).
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
        except CONNECTION_ERRORS as error:
            raise ServerUnavailable(_describe(error)) from None
        if status >= 500 or status == 429:
            raise ServerUnavailable(f"HTTP {status} from {path}: {_error_message(content)}")
        if status >= 400:
            raise UserError(_refusal(server, path, status, content))
        try:
            return json.loads(content) if content.strip() else None
        except ValueError:
            raise ServerUnavailable(f"no JSON from {path}") from None

    async def generate(self, prepared: PreparedRequest, version: int, weights: str = "") -> Sample:
        """The sample of one request, with retries on other servers.

        Args:
          version: the Sample's `weight_version`.
          weights: the name that servers must give for the weights that sampled it; empty: any.

        Raises:
          UserError: refused, failed `max_attempts` times, or no server is left.
        """
        server, reasons = None, []
        for attempt in range(1, self.limits.max_attempts + 1):
            server = await self.pool.acquire(avoid=server)
            recoveries = server.recoveries
            try:
                sample = await self._attempt(server, prepared, version, weights)
                server.consecutive_faults = 0
                return sample
            except (ServerUnavailable, InvalidResponse) as error:
                reason = str(error)
            reasons.append(f"{server.url}: {reason}")
            self.pool.record_fault(server, reason, recoveries)
            await asyncio.sleep(self.pool.backoff(attempt))
        raise UserError(
            f"request {prepared.request.id!r} failed {self.limits.max_attempts} times, last {reasons[-1]}; "
            "see the servers' logs"
        )

    async def _attempt(self, server: Server, prepared: PreparedRequest, version: int, weights: str) -> Sample:
        task = asyncio.current_task()
        assert task is not None and self._session is not None
        server.pending.add(task)
        try:
            async with self._session.post(
                server.url + "/inference/v1/generate",
                data=json.dumps(prepared.body(server.model)),
                headers={"Content-Type": "application/json", **server.headers},
                timeout=self._request_timeout,
            ) as response:
                content = await response.read()
        except CONNECTION_ERRORS as error:
            # A timeout marks a server that may still be alive: its process must be restarted, not only retried.
            server.timeouts += isinstance(error, asyncio.TimeoutError)
            raise ServerUnavailable(_describe(error)) from None
        except asyncio.CancelledError:
            if task in server.pending:
                raise
            task.uncancel()  # cancelled by the watchdog, which has removed it from `pending`
            raise ServerUnavailable("hangs: alive, but no response") from None
        finally:
            server.pending.discard(task)
            self.pool.release(server)
        if response.status >= 500 or response.status == 429:
            raise ServerUnavailable(f"HTTP {response.status}")
        if response.status >= 400:
            raise UserError(_refusal(server, f"request {prepared.request.id!r}", response.status, content))
        try:
            payload = json.loads(content)
        except ValueError:
            raise InvalidResponse("a response that is not JSON") from None
        return prepared.to_sample(payload, version, weights)

    async def _watch_busy_servers(self) -> None:
        """The watchdog: health checks of busy servers; a server that fails two in a row hangs, and loses its requests."""
        failed: dict[Server, int] = {}
        while True:
            await asyncio.sleep(self.limits.probe_interval)
            busy = [server for server in self.pool.servers if server.pending]
            for server, healthy in zip(busy, await asyncio.gather(*map(self._is_healthy, busy))):
                failed[server] = 0 if healthy else failed.get(server, 0) + 1
                if failed[server] >= _FAILED_PROBES:
                    failed[server] = 0
                    server.timeouts += 1
                    tasks, server.pending = server.pending, set()
                    for task in tasks:
                        task.cancel()

    async def _is_healthy(self, server: Server) -> bool:
        try:
            await self.call(server, "GET", "/health", timeout=self.limits.probe_timeout)
        except (ServerUnavailable, UserError):
            return False
        return True


def _describe(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no response in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection"
    return f"connection broke ({type(error).__name__})"


def _error_message(content: bytes) -> str:
    """The readable part of a server's error response, at most 300 characters."""
    text = content.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass  # not JSON: shown as it is
    return " ".join(str(text).split())[:300]


def _refusal(server: Server, what: str, status: int, content: bytes) -> str:
    """The error line of an HTTP 4xx response, with what to change where that is known."""
    message = _error_message(content)
    if status == 403:
        return f"{server.url}: refuses {what}: {message}; start it with --enable-scale-out"
    if status == 401:
        return (
            f"{server.url}: refuses the API key; set VLLM_API_KEY to the key that the server was started with"
        )
    if status == 404 and what.startswith("/"):
        return (
            f"{server.url}: has no {what}; start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls "
            f"{EXTENSION} (see docs/vllm.md, A server of your own)"
        )
    return f"{server.url}: refuses {what}: {message}"
