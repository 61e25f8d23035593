"""From the caller's thread to the client's event loop and back: many requests in few crossings."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any

from dcore_jax.engines.engine import Sample

_TOGETHER = 64  # requests that cross at once


class Job:
    """One request under way; `sample` and `error` are set once, in the loop's thread."""

    def __init__(self, done: Callable[["Job"], None]):
        self.sample: Sample | None = None
        self.error: BaseException | None = None
        self.task: asyncio.Task | None = None
        self.done = done

    def result(self) -> Sample:
        """The sample of a job that is done; raises what it ended with."""
        if self.error is not None:
            raise self.error
        assert self.sample is not None
        return self.sample


class Batch:
    """Waits for a number of jobs, waking the waiting thread once."""

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

    def wait(self, seconds: float) -> bool:
        """Whether all are done, or one has failed; waits for that."""
        return self._over.wait(seconds)


class Bridge:
    """An event loop in a thread of its own. At most `places` jobs are under way; `start` waits for places."""

    def __init__(self, places: int):
        self._places = threading.BoundedSemaphore(places)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine in the loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def start(
        self, works: Iterable[Callable[[], Coroutine[Any, Any, Sample]]], done: Callable[[Job], None]
    ) -> Iterator[Job]:
        """Starts jobs, yielding each before it can be done; `done` is called in the loop's thread."""
        crossing: list[tuple[Job, Callable[[], Coroutine[Any, Any, Sample]]]] = []
        for work in works:
            if not self._places.acquire(blocking=False):
                self._cross(crossing)
                crossing = []
                self._places.acquire()
            job = Job(done)
            yield job
            crossing.append((job, work))
            if len(crossing) == _TOGETHER:
                self._cross(crossing)
                crossing = []
        self._cross(crossing)

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Ends jobs that are not done."""
        found = [job for job in jobs if job.sample is None and job.error is None]
        if found:
            self._loop.call_soon_threadsafe(lambda: [job.task.cancel() for job in found if job.task])

    def close(self) -> None:
        """Stops the loop; what runs in it should have been ended before."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _cross(self, crossing: list[tuple[Job, Callable[[], Coroutine[Any, Any, Sample]]]]) -> None:
        if crossing:
            self._loop.call_soon_threadsafe(self._begin, crossing)

    def _begin(self, crossing: list[tuple[Job, Callable[[], Coroutine[Any, Any, Sample]]]]) -> None:
        for job, work in crossing:
            job.task = self._loop.create_task(work())
            job.task.add_done_callback(partial(self._end, job))

    def _end(self, job: Job, task: asyncio.Task) -> None:
        self._places.release()
        if task.cancelled():
            job.error = asyncio.CancelledError()
        elif error := task.exception():
            job.error = error
        else:
            job.sample = task.result()
        job.done(job)
