"""Code that may never return, raise anything, or end its thread: a tool, a user simulator."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


class TookTooLong(Exception):
    """It has not come back in time; its thread is abandoned and may still be changing things."""


def in_thread(function: Callable[[], Result]) -> "Future[Result]":
    """Starts the function in a daemon thread: the process must be able to end while it hangs, as an executor's could not."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # even SystemExit: it ends only this thread
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def run_limited(function: Callable[[], Result], seconds: float) -> Result:
    """The function's result, from a thread of its own; raises what the function raises.

    Raises:
      TookTooLong: no result after `seconds`.
    """
    future = in_thread(function)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # the function's own
            raise
        raise TookTooLong from None
