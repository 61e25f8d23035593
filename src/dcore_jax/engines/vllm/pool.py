"""The servers behind one list: who has room, who is ill, who comes back. Lives in one event loop."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcore_jax.errors import UserError


class Ill(Exception):
    """A server that cannot serve now and may again."""


@dataclass(frozen=True)
class Limits:
    """How hard the servers are driven and how long they are waited for; times in seconds."""

    in_flight: int = 256  # requests that a server has at the same time; more would queue there
    queue: int = 4096  # requests that wait here; `submit` waits for room
    timeout: float = 1800.0  # for one answer, whole
    attempts: int = 8  # for one request, on all servers together
    backoff: float = 0.25  # before the second attempt; doubled for each one after it
    longest_backoff: float = 15.0
    probe_every: float = 10.0  # how often a busy server is asked whether it is alive
    probe_timeout: float = 20.0
    patience: float = 600.0  # for a server that is ill; then it is given up

    def __post_init__(self) -> None:
        for name in ("in_flight", "queue", "attempts"):
            if getattr(self, name) < 1:
                raise UserError(f"vLLM client: {name}={getattr(self, name)} must be at least 1")


@dataclass(eq=False)
class Server:
    """One server as the client sees it."""

    url: str
    key: str = ""  # API key
    model: str = ""  # the name it serves the model under
    busy: int = 0
    ready: bool = False
    lost: str = ""  # why it was given up
    life: int = 0  # how often it was found well
    streak: int = 0  # illnesses since its last answer
    hung: int = 0  # how often it was alive, and did not answer
    asking: set[asyncio.Task] = field(default_factory=set)  # what waits for an answer of this server
    own: Any = None  # the process, where we started it

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class Pool:
    """Hands out places on servers, the least busy first, and keeps ill servers out until `heal` brings them back.

    Args:
      heal: returns when the server is well and holds the weights it should; raises Ill to be called again after a pause, and
        UserError to stop everything.
      report: told, in one line, what happens to servers.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        limits: Limits,
        heal: Callable[[Server], Awaitable[None]],
        report: Callable[[str], None],
    ):
        self.servers, self.limits = list(servers), limits
        self.faults: Counter[str] = Counter()
        self._heal, self._report = heal, report
        self._waiting: deque[asyncio.Future[Server]] = deque()
        self._healing: dict[Server, asyncio.Task] = {}
        self._stopped: BaseException | None = None

    async def take(self, avoid: Server | None = None) -> Server:
        """A place on a ready server, on another one than `avoid` if there is one; waits for it. Give it back with `release`.

        Raises:
          UserError: no server is left, or none may be used any more.
        """
        if self._stopped:
            raise self._stopped
        server = None if self._waiting else self._choice(avoid)
        if server is not None:
            server.busy += 1
            return server
        place: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.release(place.result())
            raise

    def release(self, server: Server) -> None:
        server.busy -= 1
        self.hand_out()

    def fault(self, server: Server, reason: str, life: int | None = None) -> None:
        """Counts a fault; the server is ill until it was healed. A fault of an earlier `life` says nothing about this one."""
        self.faults[reason] += 1
        if server.ready and life in (None, server.life):
            server.ready = False
            server.streak += 1
            self._report(f"{server.url}: {reason}; its requests go elsewhere or wait until it is well")
            self.heal(server)

    def heal(self, server: Server) -> None:
        """Starts to bring a server (back) into service."""
        if server in self._healing:
            return
        task = asyncio.get_running_loop().create_task(self._until_well(server))
        self._healing[server] = task
        task.add_done_callback(lambda _: self._healing.pop(server, None))

    def stop(self, error: BaseException) -> None:
        """From now on everybody who asks for a server gets this error."""
        self._stopped = self._stopped or error
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(self._stopped)

    async def close(self) -> None:
        tasks = list(self._healing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def backoff(self, times: int) -> float:
        """Seconds to wait after so many failures; doubled each time."""
        return min(self.limits.longest_backoff, self.limits.backoff * 2.0 ** max(times - 1, 0))

    def _choice(self, avoid: Server | None) -> Server | None:
        free = [s for s in self.servers if s.ready and s.busy < self.limits.in_flight]
        return min(free, key=lambda s: (s is avoid, s.busy), default=None)

    def hand_out(self) -> None:
        """Gives free places to those who wait, in the order in which they came."""
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()
                continue
            server = self._choice(None)
            if server is None:
                return
            server.busy += 1
            self._waiting.popleft().set_result(server)

    async def _until_well(self, server: Server) -> None:
        start, tries = time.monotonic(), 0
        # A server that is well at once and ill again with the next request should not be asked as fast as it fails.
        if server.streak > 1:
            await asyncio.sleep(self.backoff(server.streak - 1))
        while True:
            tries += 1
            try:
                await self._heal(server)
                break
            except Ill as illness:
                if time.monotonic() - start > self.limits.patience:
                    self._give_up(server, str(illness))
                    return
            except Exception as error:
                self.stop(error)
                return
            await asyncio.sleep(self.backoff(tries))
        if server.streak:
            self._report(f"{server.url}: well again")
        self.well(server)

    def well(self, server: Server) -> None:
        """The server serves from now on."""
        server.ready = True
        server.life += 1
        self.hand_out()

    def _give_up(self, server: Server, reason: str) -> None:
        server.lost = f"{server.url}: {reason} for {self.limits.patience:.0f} s"
        self._report(f"{server.lost}; given up")
        if all(s.lost for s in self.servers):
            self.stop(
                UserError(
                    f"no vLLM server is left: {'; '.join(s.lost for s in self.servers)}; start them and run the same line again"
                )
            )
