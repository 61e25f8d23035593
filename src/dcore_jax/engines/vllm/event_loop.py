"""An event loop in a thread of its own: how the engine's thread starts many client requests and waits for them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any

from dcore_jax.engines.engine import Sample

# Requests that are handed to the loop's thread at once: waking it for each of thousands would cost more than sending them.
_HANDOVER = 64

Work = Callable[[], Coroutine[Any, Any, Sample]]


class Job:
    """One request in progress. `sample` or `error` is set once, in the loop's thread."""

    def __init__(self, done: Callable[["Job"], None]):
        self.sample: Sample | None = None
        self.error: BaseException | None = None
        self.task: asyncio.Task | None = None
        self.done = done

    def result(self) -> Sample:
        """The sample of a job that is done; raises the error it ended with."""
        if self.error is not None:
            raise self.error
        assert self.sample is not None
        return self.sample


class Batch:
    """Counts down a number of jobs and wakes the waiting thread once, at the end or at the first error.

    Called with each job as it finishes (`EventLoopThread.start`'s `done`).
    """

    def __init__(self, jobs: int):
        self._left, self.tokens = jobs, 0
        self._over = threading.Event()
        if jobs == 0:
            self._over.set()

    def __call__(self, job: Job) -> None:
        self._left -= 1
        if job.sample is not None:
            self.tokens += len(job.sample.ids)
        if self._left == 0 or job.error is not None:
            self._over.set()

    @property
    def left(self) -> int:
        return self._left

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; True when all jobs are done or one has failed."""
        return self._over.wait(timeout)


class EventLoopThread:
    """Runs an event loop in a daemon thread. At most `capacity` jobs are in progress; `start` blocks until there is room."""

    def __init__(self, capacity: int):
        self._capacity = threading.BoundedSemaphore(capacity)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine in the loop and waits for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def start(self, works: Iterable[Work], done: Callable[[Job], None]) -> Iterator[Job]:
        """Starts jobs and yields each one before it can be done.

        Args:
          works: what makes each job's coroutine; called in the loop's thread.
          done: called with each finished job, in the loop's thread.
        """
        pending: list[tuple[Job, Work]] = []
        for work in works:
            if not self._capacity.acquire(blocking=False):
                # What waits here must run before there can be room for more: a deadlock otherwise.
                self._hand_over(pending)
                pending = []
                self._capacity.acquire()
            job = Job(done)
            yield job
            pending.append((job, work))
            if len(pending) == _HANDOVER:
                self._hand_over(pending)
                pending = []
        self._hand_over(pending)

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Cancels the jobs that are not done."""
        found = [job for job in jobs if job.sample is None and job.error is None]
        if found:
            self._loop.call_soon_threadsafe(lambda: [job.task.cancel() for job in found if job.task])

    def close(self) -> None:
        """Stops the loop and joins its thread; what runs in it should have ended before."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _hand_over(self, pending: list[tuple[Job, Work]]) -> None:
        if pending:
            self._loop.call_soon_threadsafe(self._create_tasks, pending)

    def _create_tasks(self, pending: list[tuple[Job, Work]]) -> None:
        for job, work in pending:
            job.task = self._loop.create_task(work())
            job.task.add_done_callback(partial(self._finish, job))

    def _finish(self, job: Job, task: asyncio.Task) -> None:
        self._capacity.release()
        if task.cancelled():
            job.error = asyncio.CancelledError()
        elif error := task.exception():
            job.error = error
        else:
            job.sample = task.result()
        job.done(job)
