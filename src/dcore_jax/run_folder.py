"""A run's folder: one process at a time in it, the config it was started with, and the wish to stop."""

import contextlib
import dataclasses
import fcntl
import hashlib
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from dcore_jax.config import differences, read_config, read_yaml, write_config
from dcore_jax.errors import UserError
from dcore_jax.weights import local_folder

C = TypeVar("C")


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
    try:
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{output}: cannot be written to ({error.strerror}); give another --output") from None
    with lock:
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
    if (output / "config.yaml").exists():
        started = config_of_run(type(config), output, mend="give another --output")
        changed = differences(started, config)
        if changed:
            raise UserError(
                f"{output} holds a run with another config ({'; '.join(changed)}); give another --output"
            )


def config_of_run(kind: type[C], run: Path, *, mend: str = "give the folder of an SFT or RL run") -> C:
    """The config that the run in a folder was started with.

    Raises:
      UserError: no run in it, a run of another recipe, or a `config.yaml` that cannot be read.
    """
    path = run / "config.yaml"
    if not path.exists():
        raise UserError(f"{run}: no config.yaml in it; {mend}")
    other = keys_of_run(run) - {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if other:
        raise UserError(
            f"{run}: holds a run of another recipe (its config.yaml has {', '.join(sorted(other))}); {mend}"
        )
    return read_config(kind, path)


def keys_of_run(run: Path) -> set[str]:
    """The fields of a run's `config.yaml`, which tell the recipes apart; none where there is no such file."""
    path = run / "config.yaml"
    if not path.exists():
        return set()
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: should hold keys and values")
    return {str(key) for key in values}


def model_of_run(run: Path, model: str) -> Path:
    """The folder that a run's weights came from, found again after the run."""
    try:
        return local_folder(model)
    except UserError:
        raise UserError(
            f"{run}: its model {model} is not found from here; start this in the folder that the run was started in"
        ) from None


def remember_config(config: Any, output: Path) -> None:
    """Writes `config.yaml` for the resumptions to come; call it when nothing of the user's can be wrong any more."""
    if jax.process_index() == 0 and not (output / "config.yaml").exists():
        unfinished = output / "config.yaml.tmp"  # a kill amid the writing must not leave half a config behind
        write_config(config, unfinished)
        unfinished.replace(output / "config.yaml")


DATA = "data_sha256"  # of a checkpoint's JSON: what the run trains on


def fingerprint(parts: Iterable[bytes | memoryview]) -> dict[str, str]:
    """The field of a checkpoint's JSON object that tells these data from others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return {DATA: digest.hexdigest()}


def refuse_other_data(output: Path, saved: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Holds the data against those that the checkpoint's JSON object `saved` speaks of; one without a fingerprint is taken.

    Raises:
      UserError: other data, with which the place in them would mean nothing.
    """
    if saved.get(DATA, now[DATA]) != now[DATA]:
        raise UserError(
            f"{output}: the data are not those the run started with; restore them or give another --output"
        )


def last_checkpoint(output: Path) -> str:
    """What is left of a run that had to stop."""
    whole = next((output / "checkpoints").glob("[0-9]*"), None)
    return "the last checkpoint is good" if whole else "and no checkpoint was saved before"


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
