"""Compilation that says that it compiles, and for how long: with a large model it takes minutes in which nothing moves."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from dcore_jax.progress import log

_QUIET_SECONDS = 3.0  # a shorter compilation is not worth a line
_REPEAT_SECONDS = 30.0


class Program:
    """A jitted function that is compiled ahead of its first call with each set of shapes, with a notice when that takes long.

    Calls behave as the jitted function's do, donation included. One set of shapes compiles once.
    """

    def __init__(self, jitted: Any, name: str):
        self._jitted, self._name = jitted, name
        self._compiled: dict[Any, Any] = {}

    @property
    def jitted(self) -> Any:
        """The function itself, to be lowered for another machine."""
        return self._jitted

    def __call__(self, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = (structure, *((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves))
        if key not in self._compiled:
            with compilation_notice(self._name):
                self._compiled[key] = self._jitted.lower(*args).compile()
        return self._compiled[key](*args)


@contextmanager
def compilation_notice(name: str) -> Iterator[None]:
    """Says after three seconds that `name` compiles, every half minute that it still does, and at the end how long it took."""
    start, done = time.perf_counter(), threading.Event()

    def watch() -> None:
        if done.wait(_QUIET_SECONDS):
            return
        log(f"compiling {name} ...")
        while not done.wait(_REPEAT_SECONDS):
            log(f"still compiling {name} ({time.perf_counter() - start:.0f} s)")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    seconds = time.perf_counter() - start
    if seconds > _QUIET_SECONDS:
        log(f"compiled {name} in {seconds:.0f} s")
        sys.stderr.flush()
