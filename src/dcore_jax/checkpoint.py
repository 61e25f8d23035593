"""Checkpoints of a run, the only file that knows Orbax.

A checkpoint holds named parts, each restorable alone: trees of (sharded) arrays, and one JSON object (the data iterator's state).
It is written asynchronously and appears under its step's number only when it is whole.
"""

import functools
import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dcore_jax.errors import UserError

_JSON = "data"
_LOG_AND_RAISE = {"run", "_thread_func", "wait_until_finished"}  # functions of Orbax's writers
_WRITERS = "serialize|write|cancellable"  # in the names of their coroutines


class Checkpoints:
    """The checkpoints of one run folder, `<run>/checkpoints/<step>/`."""

    def __init__(self, run: str | Path, *, keep: int | None = 2):
        self._folder = Path(run).absolute() / "checkpoints"
        _quiet_failing_writers()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint; None without one."""
        return self._manager.latest_step()

    def find(self, step: int | None) -> int:
        """`step`, or the newest where it is None; raises UserError where there is no such checkpoint."""
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"{self._folder.parent}: no checkpoint yet; let the run reach its first one")
        if step is not None and step not in steps:
            raise UserError(
                f"{self._folder}: no checkpoint of step {step}; there are those of {', '.join(map(str, steps))}"
            )
        return steps[-1] if step is None else step

    def save(self, step: int, trees: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; arrays may be donated as soon as this returns.

        Raises:
          UserError: the disk refused this checkpoint or the one before; the older ones are untouched.
        """
        parts: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._guard(
            lambda: self._manager.save(
                step, args=ocp.args.Composite(**parts, **{_JSON: ocp.args.JsonSave(dict(data))})
            )
        )

    def wait(self) -> None:
        """Blocks until what was saved is on disk; raises as `save` does."""
        self._guard(self._manager.wait_until_finished)

    def restore(self, step: int, trees: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The named parts of a checkpoint and its JSON object.

        `trees` holds abstract trees: `jax.ShapeDtypeStruct` leaves with the sharding to restore to, which need not be the one
        that was saved.

        Raises:
          UserError: a checkpoint that is damaged, or of other shapes.
        """
        parts: dict[str, Any] = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**parts, **{_JSON: ocp.args.JsonRestore()})
            )
        except Exception as error:  # Orbax raises a plain Exception for a file that is cut short
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self._folder / str(step)}: not restorable: {reason}; delete this folder to go on from the one before"
            ) from None
        return {name: restored[name] for name in trees}, restored[_JSON]

    def close(self) -> None:
        self._guard(self._manager.close)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            lines = [line for line in str(error).strip().splitlines() if line]
            reason = next(
                (line for line in lines if "space" in line or "large" in line), lines[0] if lines else error
            )
            raise UserError(
                f"{self._folder}: the checkpoint could not be written ({reason}); free some space and start the same line again"
            ) from error


@functools.cache
def _quiet_failing_writers() -> None:
    """Leaves a failed checkpoint to the one line that `Checkpoints` raises; once in a process.

    Orbax gathers its writers and closes their event loop at the first failure. Of the others each then says something on its
    own, some of it after the failure was raised: Orbax logs a traceback per thread, asyncio one per task that nobody awaited,
    Python warns of coroutines that never started, and TensorStore's threads print one for each write that outlives the loop.
    What Orbax logs and does not raise, such as an old checkpoint that it cannot remove, stays.
    """
    previous = sys.unraisablehook
    traceback = logging.Formatter().formatException

    def raised_too(record: logging.LogRecord) -> bool:
        return bool(record.exc_info) and "orbax" in record.pathname and record.funcName in _LOG_AND_RAISE

    def of_a_writer(record: logging.LogRecord) -> bool:
        return "orbax" in record.getMessage() + (traceback(record.exc_info) if record.exc_info else "")

    def hook(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            previous(event)

    logging.getLogger("absl").addFilter(lambda record: not raised_too(record))
    logging.getLogger("asyncio").addFilter(lambda record: not of_a_writer(record))
    warnings.filterwarnings("ignore", f"coroutine '.*({_WRITERS}).*' was never awaited", RuntimeWarning)
    sys.unraisablehook = hook


def abstract(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs with shardings, for `restore`, from arrays or shapes."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
