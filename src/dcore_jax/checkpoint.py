"""Checkpoints of a run, the only file that knows Orbax.

A checkpoint holds named parts, each restorable alone: trees of (sharded) arrays, and one JSON object (the data iterator's state).
It is written in the background and appears under its step's number only when it is whole.
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from dcore_jax.errors import UserError, first_line

_JSON = "data"
_SIZES = "sizes.json"  # in a checkpoint: the bytes of each file of its trees
_PARTIAL = ".partial"  # in the name of a folder that is being written or deleted
_LEAST_READ = 2**26  # bytes in flight of a small model: 64 MiB
_WRITE_ERRORS = (OSError, ValueError, jax.errors.JaxRuntimeError)  # TensorStore's are ValueErrors

_orbax_log = logging.getLogger("absl")


class Checkpoints:
    """The checkpoints of one run folder, `<run>/checkpoints/<step>/`. Every process of a run makes the same calls.

    The newest `keep` stay when a new one is whole; None keeps all. Close it also where a run stops with an error
    (`contextlib.closing`): a checkpoint that is being written is then finished.
    """

    def __init__(self, run: str | Path, *, keep: int | None = 2):
        self._folder, self._keep = Path(run).absolute() / "checkpoints", keep
        self.protected: int | None = None  # a step that stays, however old it is: the best one
        self._context = _context()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint; None without one."""
        return max(self._steps(), default=None)

    def find(self, step: int | None) -> int:
        """`step`, or the newest where it is None; raises UserError where there is no such checkpoint."""
        steps = self._steps()
        if not steps:
            raise UserError(f"{self._folder.parent}: no checkpoint yet; let the run reach its first one")
        if step is not None and step not in steps:
            raise UserError(
                f"{self._folder}: no checkpoint of step {step}; there are those of {', '.join(map(str, steps))}"
            )
        return steps[-1] if step is None else step

    def save(self, step: int, trees: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint, once the one before is on disk; arrays may be donated as soon as this returns.

        Raises:
          UserError: the disk refused this checkpoint or the one before; the older ones are untouched.
        """
        self.wait()
        _orbax_log.addFilter(_not_raised_anyway)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._delete_partial()  # what a killed run left
            with self._context:
                written = ocp.save_checkpointables_async(
                    self._folder / f"{step}{_PARTIAL}", {**trees, _JSON: dict(data)}
                )
        except _WRITE_ERRORS as error:
            raise self._failed(error) from error
        self._pending = self._worker.submit(self._finish, step, written)

    def wait(self) -> None:
        """Blocks until what was saved is on disk; raises as `save` does."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except _WRITE_ERRORS as error:
            raise self._failed(error) from error
        _orbax_log.removeFilter(_not_raised_anyway)

    def restore(self, step: int, trees: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The named parts of a checkpoint and its JSON object.

        `trees` holds abstract trees: `jax.ShapeDtypeStruct` leaves with the sharding and the dtype to restore to, which need not
        be those that were saved. Arrays are read a few at a time, each device's shard of it cast as it is read.

        Raises:
          UserError: a checkpoint that is damaged, or of other shapes.
        """
        path = self._folder / str(step)
        parts = {_JSON: None, **trees}
        try:
            with _context(read_bytes=_read_bytes(trees)):
                # Orbax reads the arrays of a part all at once and prints what fails after the first: look before.
                _check_sizes(path)
                _check_shapes(path, trees)
                found = {k: ocp.load_checkpointables(path, {k: v})[k] for k, v in parts.items()}
        except UserError:
            raise
        except Exception as error:  # Orbax raises a plain Exception for a file that it cannot read
            raise UserError(
                f"{path}: not restorable: {first_line(error.__cause__ or error)}; "
                "delete this folder to go on from the one before"
            ) from None
        return {name: found[name] for name in trees}, found[_JSON]

    def close(self) -> None:
        """Waits as `wait` does."""
        self.wait()

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())

    def _finish(self, step: int, written: Any) -> None:
        """Runs in the worker: gives a checkpoint its number when Orbax has written all of it, then deletes the oldest."""
        written.result()
        if jax.process_index() > 0:
            return
        partial = self._folder / f"{step}{_PARTIAL}"
        files = [path for path in partial.rglob("*") if path.is_file() and path.parent.name != _JSON]
        sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
        (partial / _SIZES).write_text(json.dumps(sizes))
        partial.rename(self._folder / str(step))
        for old in self._steps()[: -self._keep] if self._keep else []:
            if old == self.protected:
                continue
            removed = (self._folder / str(old)).rename(self._folder / f"{old}{_PARTIAL}")
            shutil.rmtree(removed, ignore_errors=True)  # what is left is tried again at the next save

    def _failed(self, error: BaseException) -> UserError:
        _orbax_log.removeFilter(_not_raised_anyway)
        self._delete_partial()
        return UserError(
            f"{self._folder}: the checkpoint could not be written ({first_line(error)}); "
            "free some space and start the same line again"
        )

    def _delete_partial(self) -> None:
        if jax.process_index() == 0:
            for path in self._folder.glob(f"*{_PARTIAL}*"):
                shutil.rmtree(path, ignore_errors=True)


def abstract(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings, for `restore`, from arrays or shapes."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _read_bytes(trees: Any) -> int:
    """The most bytes to read at once: an array's worth, which may lie in the checkpoint in one piece, and not a whole model's."""
    largest = max((4 * math.prod(x.shape) for x in jax.tree.leaves(trees)), default=0)
    return max(largest + 1, _LEAST_READ)


def _context(*, read_bytes: int | None = None) -> ocp.Context:
    """Options under which a failed write is one error, and which need no second copy of the arrays in host memory.

    The arrays of a tree are then written in one transaction, and nothing beside it; with many writes Orbax closes its event
    loop at the first that fails, and asyncio and TensorStore's threads print the others. A transaction holds what it will
    write: with compression a second copy, without it the arrays themselves.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.enable_write_sharding_file = False  # `restore` is told the shardings
    context.array.saving.array_metadata_store = None
    context.asynchronous.create_directories_asynchronously = False  # writers would wait for one that fails
    context.memory_options.read_concurrent_bytes = read_bytes
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=_JSON)
    context.checkpointables.registry = registry
    return context


def _not_raised_anyway(record: logging.LogRecord) -> bool:
    """Filters Orbax's log while a checkpoint is being written, in place of an option that Orbax does not have.

    False for the records of one function: each of Orbax's writer threads logs the traceback of the error that it hands on,
    and that `AsyncResponse.result` raises. In 0.12.8 all its ways to write arrays go through that function: `CheckpointManager`,
    `training.Checkpointer` and `save`, asynchronous or not, with and without OCDBT, a limit or a thread of our own.
    """
    return not (record.funcName == "run" and record.pathname.endswith("checkpoint/_src/futures/future.py"))


def _check_sizes(path: Path) -> None:
    if not (path / _SIZES).exists():
        raise ValueError(f"no {_SIZES}: a partial copy, or of an older dcore_jax")
    for name, size in json.loads((path / _SIZES).read_text()).items():
        found = (path / name).stat().st_size if (path / name).exists() else 0
        if found < size:
            raise ValueError(f"{name} has {found} of {size} bytes")


def _check_shapes(path: Path, trees: Mapping[str, Any]) -> None:
    metadata = ocp.checkpointables_metadata(path).metadata
    there, here = (
        {jax.tree_util.keystr(key, simple=True, separator="."): x.shape for key, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, ({k: metadata.get(k) for k in trees}, trees))
    )
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise UserError(
                f"{path}: {name} is {there.get(name, 'missing')} in this checkpoint and {here.get(name, 'missing')} here; "
                "go on with the model and the config that the run was started with"
            )
