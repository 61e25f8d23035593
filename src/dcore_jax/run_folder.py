"""A run's folder: one process at a time in it, the config it was started with, and the wish to stop."""

import contextlib
import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from dcore_jax.config import differences, read_config, write_config
from dcore_jax.errors import UserError


@contextlib.contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """Makes the folder and holds it: a second process that wants it gets a UserError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made ({error.strerror})") from None
    if jax.process_index() != 0:
        yield
        return
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{output}: another process is training in it; wait for it or give another --output"
            ) from None
        yield


def refuse_another_config(config: Any, output: Path) -> None:
    """Holds the config against the `config.yaml` that the run in this folder was started with, if there is one.

    Raises:
      UserError: naming every field that differs and may not change in a run.
    """
    path = output / "config.yaml"
    if path.exists():
        changed = differences(read_config(type(config), path), config)
        if changed:
            raise UserError(
                f"{output} holds a run with another config ({'; '.join(changed)}); give another --output"
            )


def remember_config(config: Any, output: Path) -> None:
    """Writes `config.yaml` for the resumptions to come; call it when nothing of the user's can be wrong any more."""
    if jax.process_index() == 0 and not (output / "config.yaml").exists():
        write_config(config, output / "config.yaml")


def write_or_compare_config(config: Any, output: Path) -> None:
    """`refuse_another_config`, then `remember_config`."""
    refuse_another_config(config, output)
    remember_config(config, output)


@contextlib.contextmanager
def sigterm() -> Iterator[Any]:
    """Yields `asked(step)`: True once SIGTERM has come, at the same step in every process."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point  # jax.distributed listens for SIGTERM itself
        return
    asked: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    except ValueError:  # not the main thread, as in some notebooks: whoever owns the signal keeps it
        yield lambda step: False
        return
    try:
        yield lambda step: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
