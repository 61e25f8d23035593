"""The thread that drives the engine, and requests as an event loop sees them.

An engine is no thread's but one: HTTP handlers put requests into a queue, this thread submits them, polls, and hands back what
was sampled, while it is sampled where someone watches.
"""

import asyncio
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, NamedTuple

from dcore_jax.engines.engine import Engine, Request, Sample

_IDLE = 0.5  # seconds between two looks at whether to end


class Progress(NamedTuple):
    """What a request has sampled so far; `sample` once it is finished."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sample: Sample | None = None


class EngineFailed(Exception):
    """The engine raised; its requests are lost."""


class TooManyRequests(Exception):
    """As many requests wait as may."""


class Ticket:
    """One request under way. `updates` ends with the progress that has a sample, or an exception."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop, watched: bool):
        self.number, self.watched = number, watched
        self.updates: asyncio.Queue[Progress | BaseException] = asyncio.Queue()
        self._loop = loop

    def put(self, update: Progress | BaseException) -> None:
        """From the engine's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.updates.put_nowait, update)

    async def next(self) -> Progress:
        """The next progress. Raises EngineFailed."""
        update = await self.updates.get()
        if isinstance(update, BaseException):
            raise EngineFailed(str(update)) from update
        return update


class EngineDriver:
    """Drives an engine in a thread of its own until `close`.

    Args:
      waiting: requests that may be in the engine beyond its slots.
    """

    def __init__(self, engine: Engine, *, slots: int, waiting: int):
        self._engine, self._most = engine, slots + waiting
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}  # the engine thread's
        self._open = 0  # the event loop's
        self._next = 0
        self.finished = self.tokens = 0
        self.failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """Requests under way."""
        return self._open

    @contextmanager
    def running(self, requests: Sequence[Request], *, watched: bool) -> Iterator[list[Ticket]]:
        """Submits the requests; what is left of them at the end of the block is cancelled.

        Args:
          watched: give progress while they are sampled, where the engine can.

        Raises:
          TooManyRequests: the engine's queue is full.
          EngineFailed: the engine has raised earlier.
        """
        if self.failure is not None:
            raise EngineFailed(str(self.failure))
        if self._open + len(requests) > self._most:
            raise TooManyRequests(f"{self._open} requests are under way, as many as may; try again later")
        loop = asyncio.get_running_loop()
        tickets = []
        for _ in requests:
            tickets.append(Ticket(self._next, loop, watched))
            self._next += 1
        self._open += len(tickets)
        self._inbox.put(lambda: self._submit(requests, tickets))
        try:
            yield tickets
        finally:
            self._open -= len(tickets)
            self._inbox.put(lambda: self._cancel(tickets))

    def close(self, timeout: float = 10.0) -> None:
        """Ends the thread; what is under way is dropped. The engine itself stays open."""
        self._inbox.put(None)
        self._thread.join(timeout)

    # --- the engine's thread ---

    def _run(self) -> None:
        while self._take_orders():
            if self.failure is not None:
                time.sleep(_IDLE)  # there is nothing to do but to end when told
                continue
            try:
                self._report(self._engine.poll())
            except BaseException as error:  # whatever an engine raises: the server says so and stays up
                self._fail(error)

    def _take_orders(self) -> bool:
        """Does what the inbox holds, waiting for something where the engine is idle; False: end."""
        while True:
            idle = not self._engine.in_flight
            try:
                order = self._inbox.get(idle, _IDLE if idle else None)
            except queue.Empty:
                if idle:
                    continue
                return True
            if order is None:
                return False
            order()

    def _submit(self, requests: Sequence[Request], tickets: list[Ticket]) -> None:
        for request, ticket in zip(requests, tickets, strict=True):
            try:
                self._engine.submit([Request(request.prompt_ids, request.sampling, ticket.number)])
                self._tickets[ticket.number] = ticket
            except Exception as error:  # of this request: the others go on
                ticket.put(error)

    def _cancel(self, tickets: list[Ticket]) -> None:
        lost = [ticket.number for ticket in tickets if self._tickets.pop(ticket.number, None) is not None]
        if lost and hasattr(self._engine, "cancel"):
            self._engine.cancel(lost)

    def _report(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.finished += 1
            self.tokens += len(sample.ids)
            ticket = self._tickets.pop(int(sample.request_id), None)
            if ticket is not None:  # else one that was given up, in an engine that cannot cancel
                ticket.put(Progress(sample.ids, sample.logprobs, sample))
        watched = [ticket for ticket in self._tickets.values() if ticket.watched]
        if watched and hasattr(self._engine, "sampled_so_far"):
            engine: Any = self._engine
            ids, logprobs = engine.sampled_so_far(), engine.logprobs_so_far()
            for ticket in watched:
                if so_far := ids.get(ticket.number):
                    ticket.put(Progress(so_far, logprobs[ticket.number]))

    def _fail(self, error: BaseException) -> None:
        """Tells every request, and every later one: what `poll` raises is the engine's end."""
        self.failure = error
        for ticket in self._tickets.values():
            ticket.put(error)
        self._tickets.clear()
