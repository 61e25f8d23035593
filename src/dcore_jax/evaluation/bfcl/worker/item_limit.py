"""A time limit for one item. Standard library only."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ItemTimeout(BaseException):
    """An item took too long; no Exception, since the tools' executor catches those."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises ItemTimeout inside the block once `seconds` have passed; main thread only."""

    def stop(*_: Any) -> None:
        raise ItemTimeout

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
