"""The device mesh, and the one table from logical axes to mesh axes.

`data` replicates parameters, `fsdp` shards them along the model width, `tensor` splits heads, MLP and vocabulary. A batch is
split over `data` and `fsdp` together.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from dcore_jax.errors import UserError
from dcore_jax.processes import join, local_devices, processes_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis of a parameter or activation -> mesh axis (None: not split).
LOGICAL_TO_MESH: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,
    "layers": None,
    "embed": "fsdp",  # model width, split at rest and gathered layer by layer
    "heads": "tensor",  # heads x head_dim
    "mlp": "tensor",
    "vocab": "tensor",
    None: None,
}


def parse_mesh(text: str) -> dict[str, int]:
    """`"8"` -> fsdp=8; `"data=2,fsdp=2,tensor=2"` -> as said; every axis of AXES is in the result.

    Raises:
      UserError: an unknown axis, or a size that is no positive whole number.
    """
    sizes = dict.fromkeys(AXES, 1)
    parts = [f"fsdp={text}"] if "=" not in text else text.split(",")
    for part in parts:
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis not in sizes:
            raise UserError(
                f"mesh axis {axis!r} is unknown; the axes are {', '.join(AXES)}, as in --mesh data=2,fsdp=4"
            )
        if not size.isdigit() or int(size) < 1:
            raise UserError(
                f"mesh {text!r}: {axis} needs a positive whole number, as in --mesh 8 or --mesh data=2,fsdp=4"
            )
        sizes[axis] = int(size)
    return sizes


def prepare_devices(mesh: str | None) -> None:
    """Call once before anything touches JAX: joins other processes, and gives a CPU as many virtual devices as the mesh asks for.

    On a GPU or TPU the virtual CPU devices exist beside the accelerators and change nothing. Processes find one another through
    `jax.distributed`: by hand with DCORE_COORDINATOR=host:port DCORE_PROCESSES=n DCORE_PROCESS_ID=i; by torchrun's variables
    (MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK); by themselves in a SLURM job of several tasks, and on the workers of a TPU pod
    (or wherever DCORE_DISTRIBUTED=1 says so).

    Raises:
      UserError: a mesh that cannot be read, or that does not divide among the processes; a variable that is no number or missing.
    """
    processes = processes_of(os.environ)
    if mesh is not None:
        local = local_devices(math.prod(parse_mesh(mesh).values()), processes, mesh)
        jax.config.update("jax_num_cpu_devices", local)
        if local > 1:
            # Virtual devices wait for one another inside collectives, several at a time, each wait holding a thread of XLA's
            # CPU pool; with only as many threads as cores or devices they wait for ever. NPROC is the size of that pool.
            os.environ.setdefault("NPROC", str(8 * local))
    join(processes)


def make_mesh(text: str | None) -> Mesh:
    """The mesh of `--mesh`; without one, fsdp over all devices (one device on a CPU).

    Raises:
      UserError: more devices asked for than there are, naming both numbers and the fix.
    """
    devices = jax.devices()
    if text is None:
        text = "1" if devices[0].platform == "cpu" and jax.process_count() == 1 else str(len(devices))
    sizes = parse_mesh(text)
    wanted = math.prod(sizes.values())
    if wanted > len(devices):
        hint = (
            "start with fewer, or call prepare_devices first"
            if devices[0].platform == "cpu"
            else f"use --mesh {len(devices)}, or JAX_PLATFORMS=cpu for {wanted} virtual devices"
        )
        raise UserError(
            f"mesh {text} needs {wanted} devices, {len(devices)} found ({devices[0].device_kind}); {hint}"
        )
    if wanted < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"mesh {text} uses {wanted} of {len(devices)} devices; with several processes use all of them"
        )
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:wanted])


def spec(logical: Sequence[str | None]) -> P:
    """The PartitionSpec of logical axes, by the table above."""
    return P(*(LOGICAL_TO_MESH[name] for name in logical))


def sharding(mesh: Mesh, logical: Sequence[str | None]) -> NamedSharding:
    """Where an array with these logical axes lives on the mesh."""
    return NamedSharding(mesh, spec(logical))


def constrain(x: Shaped[Array, "..."], *logical: str | None) -> Shaped[Array, "..."]:
    """Pins an intermediate array to the mesh in use (`jax.set_mesh`); does nothing without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return x
    return jax.lax.with_sharding_constraint(x, spec(logical))


def divisible(logical: Sequence[str | None], shape: Sequence[int]) -> tuple[str | None, ...]:
    """Logical axes, without those whose dimension the mesh in use does not divide: they stay whole on every device."""
    mesh = jax.sharding.get_abstract_mesh()
    return fitting(logical, shape, {} if mesh.empty else mesh.shape)


def fitting(
    logical: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]
) -> tuple[str | None, ...]:
    """`divisible` for a mesh of these sizes."""

    def parts(name: str | None) -> int:
        axis = LOGICAL_TO_MESH[name]
        return math.prod(sizes.get(a, 1) for a in ((axis,) if isinstance(axis, str) else axis or ()))

    return tuple(name if size % parts(name) == 0 else None for name, size in zip(logical, shape, strict=True))


def check_divisible(sizes: Mapping[str, int], logical_sizes: Mapping[str, int]) -> None:
    """Raises UserError where a model dimension cannot be split as the mesh asks; `logical_sizes` maps a name to its size."""
    for name, (axis, size) in {
        name: (LOGICAL_TO_MESH[name.split(":")[0]], size) for name, size in logical_sizes.items()
    }.items():
        parts = math.prod(sizes[a] for a in ((axis,) if isinstance(axis, str) else axis or ()))
        if size % parts:
            what = name.split(":")[-1]
            raise UserError(f"mesh {axis}={parts} does not divide {what}={size}; choose a divisor of {size}")


def put_global(mesh: Mesh, logical: Sequence[str | None], tree: Any) -> Any:
    """Places host arrays, identical in every process, on the mesh; each process copies only the rows of its own devices."""
    placement = sharding(mesh, logical)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, placement, lambda index: x[index]), tree
    )


def device_line(mesh: Mesh) -> str:
    """A mesh in words, as `8 x cpu (fsdp 8)`."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "1 device"
    return f"{mesh.size} x {jax.devices()[0].device_kind} ({axes})"
