"""The pool of vLLM servers: load balancing, fault counts, and recovery of failed servers in the background.

Lives in one event loop: its state changes only between awaits, so it needs no lock.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcore_jax.errors import UserError


class ServerUnavailable(Exception):
    """A server that cannot serve now; a retry may succeed."""


@dataclass(frozen=True)
class Limits:
    """Load, timeouts and retries of the client; times in seconds."""

    in_flight: int = 256  # requests at one server at the same time; more would only queue there
    queue: int = 4096  # requests in progress on all servers together; `submit` waits where there are more
    request_timeout: float = 1800.0  # for one whole response
    max_attempts: int = 8  # of one request, on all servers together
    backoff: float = 0.25  # before the first retry; doubled for each one after it
    max_backoff: float = 15.0
    probe_interval: float = 10.0  # between health checks of a server with requests in flight
    probe_timeout: float = 20.0  # for one health check
    recovery_timeout: float = 600.0  # for an unavailable server to recover; then it is abandoned

    def __post_init__(self) -> None:
        for name in ("in_flight", "queue", "max_attempts"):
            if getattr(self, name) < 1:
                raise UserError(f"vLLM client: {name}={getattr(self, name)} must be at least 1")


@dataclass(eq=False)
class Server:
    """One server as the client sees it."""

    url: str
    key: str = ""  # API key
    model: str = ""  # the name under which it serves the model; empty until the server was asked for it
    busy: int = 0  # requests in flight there
    ready: bool = False  # it may be given requests
    abandoned_reason: str = ""  # why it is not used any more; empty while it is
    recoveries: int = 0  # times it was marked ready
    consecutive_faults: int = 0  # since its last valid response
    timeouts: int = 0  # times it was alive and did not respond, since its process was started
    pending: set[asyncio.Task] = field(default_factory=set)  # tasks that wait for a response from it
    own: Any = None  # the OwnServer, where we started the process

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class Pool:
    """Gives out places on ready servers, the least busy first, and takes failed servers out until they have recovered.

    Args:
      servers: all of them; none is ready before `mark_ready`.
      limits: load and timeouts.
      restore: brings one server into service and returns when it can serve the current weights. It raises ServerUnavailable to be
        retried after a backoff, and UserError to stop everything.
      report: called with one line for each fault, recovery and abandoned server.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        limits: Limits,
        restore: Callable[[Server], Awaitable[None]],
        report: Callable[[str], None],
    ):
        self.servers, self.limits = list(servers), limits
        self.faults: Counter[str] = Counter()
        self._restore, self._report = restore, report
        self._waiting: deque[asyncio.Future[Server]] = deque()
        self._recovering: dict[Server, asyncio.Task] = {}
        self._stopped: BaseException | None = None

    async def acquire(self, avoid: Server | None = None) -> Server:
        """Waits for a place on a ready server, another one than `avoid` if possible. `release` it afterwards.

        Raises:
          UserError: all servers are abandoned, or an error stopped the pool.
        """
        if self._stopped:
            raise self._stopped
        # Whoever comes now must not overtake those who already wait.
        server = None if self._waiting else self._least_busy(avoid)
        if server is not None:
            server.busy += 1
            return server
        place: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            # Cancelled in the moment in which a place was given: it must not be lost.
            if place.done() and not place.cancelled() and place.exception() is None:
                self.release(place.result())
            raise

    def release(self, server: Server) -> None:
        server.busy -= 1
        self._assign_places()

    def record_fault(self, server: Server, reason: str, recoveries: int | None = None) -> None:
        """Counts a fault, takes the server out of service and starts its recovery.

        Args:
          recoveries: `server.recoveries` when the failed request was sent. A fault from before the last recovery is counted, but
            says nothing about the server now.
        """
        self.faults[reason] += 1
        if server.ready and recoveries in (None, server.recoveries):
            server.ready = False
            server.consecutive_faults += 1
            self._report(
                f"{server.url}: {reason}; its requests go to other servers or wait until it recovers"
            )
            self.recover(server)

    def recover(self, server: Server) -> None:
        """Starts the recovery of a server in the background, unless it is under way."""
        if server in self._recovering:
            return
        task = asyncio.get_running_loop().create_task(self._recover(server))
        self._recovering[server] = task
        task.add_done_callback(lambda _: self._recovering.pop(server, None))

    def mark_ready(self, server: Server) -> None:
        """The server is in service from now on."""
        server.ready = True
        server.recoveries += 1
        self._assign_places()

    def stop(self, error: BaseException) -> None:
        """Raises this error in everyone who waits for a server, now and later."""
        self._stopped = self._stopped or error
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(self._stopped)

    async def close(self) -> None:
        """Cancels recoveries."""
        tasks = list(self._recovering.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: exponential, up to `max_backoff`."""
        return min(self.limits.max_backoff, self.limits.backoff * 2.0 ** max(failures - 1, 0))

    def _least_busy(self, avoid: Server | None) -> Server | None:
        free = [s for s in self.servers if s.ready and s.busy < self.limits.in_flight]
        return min(free, key=lambda s: (s is avoid, s.busy), default=None)

    def _assign_places(self) -> None:
        """Gives free places to those who wait, first come, first served."""
        while self._waiting:
            if self._waiting[0].done():  # cancelled
                self._waiting.popleft()
                continue
            server = self._least_busy(None)
            if server is None:
                return
            server.busy += 1
            self._waiting.popleft().set_result(server)

    async def _recover(self, server: Server) -> None:
        start, attempts = time.monotonic(), 0
        # A server that recovers at once and fails the next request again would otherwise be retried as fast as it fails.
        if server.consecutive_faults > 1:
            await asyncio.sleep(self.backoff(server.consecutive_faults - 1))
        while True:
            attempts += 1
            try:
                await self._restore(server)
                break
            except ServerUnavailable as error:
                if time.monotonic() - start > self.limits.recovery_timeout:
                    self._abandon(server, str(error))
                    return
            except Exception as error:
                self.stop(error)
                return
            await asyncio.sleep(self.backoff(attempts))
        if server.consecutive_faults:
            self._report(f"{server.url}: recovered")
        self.mark_ready(server)

    def _abandon(self, server: Server, reason: str) -> None:
        server.abandoned_reason = f"{server.url}: {reason} for {self.limits.recovery_timeout:.0f} s"
        self._report(f"{server.abandoned_reason}; abandoned")
        reasons = [s.abandoned_reason for s in self.servers]
        if all(reasons):
            self.stop(
                UserError(
                    f"no vLLM server is left: {'; '.join(reasons)}; start them and run the same command again"
                )
            )
