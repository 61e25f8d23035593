"""SIGTERM and Ctrl-C: the first asks a run to save a checkpoint and end, a second one ends the process at once.

Signals are read from a pipe by a thread: Python's own handlers would wait until a compilation or a device's step is over.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether a stop was asked for, and by which signal."""

    def __init__(self) -> None:
        self._received: list[int] = []

    def __call__(self, step: int) -> bool:
        """True once a signal has come; with several processes at the same step in each of them."""
        return bool(self._received)

    @property
    def name(self) -> str:
        """`SIGTERM` or `Ctrl-C`; empty before one came."""
        if not self._received:
            return ""
        return "Ctrl-C" if self._received[0] == signal.SIGINT else "SIGTERM"

    def _receive(self, number: int) -> None:
        self._received.append(number)
        if len(self._received) == 1:
            again = "press Ctrl-C again" if number == signal.SIGINT else "send the signal again"
            print(
                f"\n{self.name}: saving after the current step; {again} to stop at once",
                file=sys.stderr,
                flush=True,
            )
        else:
            print("\nstopped at once; start the same line again to go on", file=sys.stderr, flush=True)
            os._exit(128 + number)


class _DistributedStopRequest(StopRequest):
    """jax.distributed listens for SIGTERM itself and agrees on a step; Ctrl-C is passed on to it as SIGTERM."""

    def __call__(self, step: int) -> bool:
        if multihost_utils.reached_preemption_sync_point(step):
            self._received = self._received or [signal.SIGTERM]
        return bool(self._received)


@contextlib.contextmanager
def preemption_signal() -> Iterator[StopRequest]:
    """Listens while the block runs. Outside of the main thread (some notebooks) the signals stay with who had them."""
    if jax.process_count() > 1:
        with _handler({signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}):
            yield _DistributedStopRequest()
        return
    request = StopRequest()
    with _handler(dict.fromkeys(_SIGNALS, lambda *_: None)) as listening:
        if not listening:
            yield request
            return
        with _wakeup_thread(request._receive):
            yield request


@contextlib.contextmanager
def _handler(handlers: dict[signal.Signals, Callable[..., None]]) -> Iterator[bool]:
    """Installs Python-level handlers; False outside of the main thread, which alone may."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _wakeup_thread(receive: Callable[[int], None]) -> Iterator[None]:
    """A thread that is told of each signal by the C-level handler, whatever the main thread is busy with."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while (numbers := os.read(reader, 64)) and 0 not in numbers:
            for number in numbers:
                if number in _SIGNALS:
                    receive(number)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
