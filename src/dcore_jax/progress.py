"""Progress of long work: a bar on a terminal, short lines in a file; and lines that do not tear the bar.

Only process 0 of several shows anything.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

_LINE_SECONDS = 30.0  # between two lines of a file, unless a tenth of the work is done before


@runtime_checkable
class Progress(Protocol):
    """What the loops ask of a bar."""

    def update(self, n: int = 1) -> Any: ...

    def set_postfix(self, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def progress_bar(
    total: int, *, unit: str, initial: int = 0, desc: str = "", transient: bool = False, disable: bool = False
) -> Progress:
    """A bar where stderr is a terminal, short lines where it is a file or a pipe, nothing where `disable` says so.

    Args:
      total, initial: units of work in all, and those that were done before.
      desc: what is going on, before the bar.
      transient: shown after two seconds and gone at the end; in a file nothing is written before the first half minute.
    """
    if disable:
        return _Nothing()
    if sys.stderr.isatty() or _in_notebook():
        return _Bar(total, unit, initial, desc, transient)
    return _Lines(total, unit, initial, desc, transient)


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this code; that its package was imported says nothing."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def log(message: str) -> None:
    """A line on stdout between whatever a bar draws on stderr; process 0 speaks for all."""
    import jax

    if jax.process_index() == 0:
        tqdm.write(message)
        sys.stdout.flush()


class _Nothing:
    def update(self, n: int = 1) -> None: ...

    def set_postfix(self, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class _Bar:
    def __init__(self, total: int, unit: str, initial: int, desc: str, transient: bool):
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            desc=desc or None,
            leave=not transient,
            delay=2.0 if transient else 0.0,
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def update(self, n: int = 1) -> None:
        self._bar.update(n)

    def set_postfix(self, values: Mapping[str, Any]) -> None:
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """`step 140/700 (20 %), 3.2 step/s, loss=1.234` at most every half minute, and at each tenth of the work."""

    def __init__(self, total: int, unit: str, initial: int, desc: str, transient: bool):
        self._total, self._unit, self._done, self._initial = total, unit, initial, initial
        self._desc, self._transient = desc, transient
        self._start = self._shown_at = time.monotonic()
        self._shown, self._values = initial, ""

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        tenth = self._total and self._done * 10 // self._total > self._shown * 10 // self._total
        due = now - self._shown_at >= _LINE_SECONDS
        if due or (tenth and not self._transient):
            self._show(now)

    def set_postfix(self, values: Mapping[str, Any]) -> None:
        self._values = ", ".join(f"{name}={value}" for name, value in values.items())

    def close(self) -> None:
        if self._done > self._shown and not self._transient:
            self._show(time.monotonic())

    def _show(self, now: float) -> None:
        rate = (self._done - self._initial) / max(now - self._start, 1e-9)
        parts = [f"{self._unit} {self._done:,}/{self._total:,}", f"{rate:.3g} {self._unit}/s", self._values]
        line = ", ".join(part for part in parts if part)
        print(f"{self._desc}: {line}" if self._desc else line, file=sys.stderr, flush=True)
        self._shown, self._shown_at = self._done, now
