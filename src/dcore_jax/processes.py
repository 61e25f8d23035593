"""The processes of a run on several hosts: how they find one another, and how all of them end when one does."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import jax

from dcore_jax.errors import UserError, first_line

# A process that no longer answers is given up after this many seconds; JAX then ends the others.
HEARTBEAT_TIMEOUT = 60
# What collectives and JAX's coordination service say when another process is gone.
_LOST = (
    "gloo",
    "nccl",
    "connection reset",
    "connection closed",
    "socket closed",
    "heartbeat",
    "unhealthy",
    "coordination",
)


@dataclass(frozen=True)
class Processes:
    """Where this process stands among those of a run; `coordinator` is None where JAX finds it by itself."""

    count: int
    index: int | None
    coordinator: str | None
    source: str  # the variables that said so, for messages

    @property
    def several(self) -> bool:
        """Whether others are to be joined."""
        return self.count > 1 or self.source in ("DCORE_COORDINATOR", "a TPU pod")


def processes_of(environment: Mapping[str, str]) -> Processes:
    """What the environment says, by the first of: DCORE_*, SLURM, torchrun's variables, a TPU pod's.

    Raises:
      UserError: a variable that is no number, or that is missing beside the others.
    """
    if "DCORE_COORDINATOR" in environment:
        count = _count(environment, "DCORE_PROCESSES") or _count(environment, "SLURM_NTASKS") or 1
        index = _count(environment, "DCORE_PROCESS_ID")
        if index is None or index >= count:
            raise UserError(
                f"DCORE_COORDINATOR is set: give each process a DCORE_PROCESS_ID below DCORE_PROCESSES={count}"
            )
        return Processes(count, index, environment["DCORE_COORDINATOR"], "DCORE_COORDINATOR")
    count = _count(environment, "DCORE_PROCESSES") or _count(environment, "SLURM_NTASKS") or 1
    if count > 1:
        return Processes(count, None, None, f"SLURM_NTASKS={count}")
    world = _count(environment, "WORLD_SIZE") or 1
    if world > 1 and "MASTER_ADDR" in environment:
        index, port = _count(environment, "RANK"), _count(environment, "MASTER_PORT")
        if index is None or port is None or index >= world:
            raise UserError(
                f"WORLD_SIZE={world} and MASTER_ADDR are set: give each process MASTER_PORT and a RANK below {world}, "
                "as torchrun does, or unset WORLD_SIZE"
            )
        # torchrun's own store listens at MASTER_PORT.
        return Processes(world, index, f"{environment['MASTER_ADDR']}:{port + 1}", f"WORLD_SIZE={world}")
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or environment.get("DCORE_DISTRIBUTED") == "1":
        return Processes(1, None, None, "a TPU pod")
    return Processes(1, 0, None, "")


def local_devices(wanted: int, processes: Processes, mesh: str) -> int:
    """The devices of a mesh that each process brings.

    Raises:
      UserError: they do not divide.
    """
    if wanted % processes.count:
        hint = f" ({processes.source}; unset it for a single one)" if "=" in processes.source else ""
        raise UserError(
            f"mesh {mesh} has {wanted} devices, which do not divide among {processes.count} processes{hint}"
        )
    return wanted // processes.count


def join(processes: Processes) -> None:
    """Connects this process with the others, if there are any; returns when all are there.

    Raises:
      UserError: JAX does not know where they are.
    """
    if not processes.several:
        return
    if processes.coordinator is not None:
        jax.distributed.initialize(
            processes.coordinator,
            processes.count,
            processes.index,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except ValueError as error:  # no cluster that it knows
        slurm = processes.source.startswith("SLURM")
        hint = "start with srun, or unset SLURM_NTASKS" if slurm else "set DCORE_COORDINATOR by hand"
        why = processes.source if slurm else "DCORE_DISTRIBUTED=1 or TPU_WORKER_HOSTNAMES"
        raise UserError(f"{why}: the other processes are not found ({error}); {hint}") from None


def lost_process(error: BaseException) -> str | None:
    """The line to show where an error says that another process of the run is gone; None for all other errors."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or not _joined():
        return None
    if not any(word in str(error).lower() for word in _LOST):
        return None
    return (
        f"process {jax.process_index()} of {jax.process_count()} has lost another one ({first_line(error)}); see that one's "
        "last lines, then start the same line on all hosts again to go on from the last checkpoint"
    )


def leave(status: int) -> NoReturn:
    """Ends this process with the status; with several at once, as an exit would first wait for all the others to come to it."""
    if _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _joined() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _count(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"{name}={text} must be a whole number")
    return int(text)
