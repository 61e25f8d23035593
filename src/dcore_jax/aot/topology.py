"""Meshes of devices that are not there, and which compiler stands behind them.

libtpu compiles for every TPU, JAX's CUDA plugin for every NVIDIA GPU, both without one. Where the package is missing, XLA's CPU
compiler takes its place: the same shapes and collectives, but its own kernels and its own use of memory.
"""

import contextlib
import math
import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from dcore_jax.aot.devices import Device
from dcore_jax.errors import UserError
from dcore_jax.mesh import AXES, parse_mesh

# Slices that can be had, smallest first. A mesh of another size takes the first chips of the next larger one.
_SLICES = {
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
# What XLA's GPU backend is told of a card: the data sheets' and the CUDA occupancy tables' figures.
_GPU_INFO = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: {core_memory} shared_memory_per_block_optin: {block_memory} threads_per_core_limit: {threads}
core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64 registers_per_core_limit: 65536
registers_per_block_limit: 65536 memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
device_memory_size: {memory} cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{kind}" """
_HOPPER = {"cores": 132, "fpus": 128, "clock": 1.98, "l2": 50 << 20, "extension": "ACCELERATED_FEATURES"}
_HOPPER |= {"core_memory": 228 << 10, "block_memory": 227 << 10, "threads": 2048}
_AMPERE = {"cores": 108, "fpus": 64, "clock": 1.41, "l2": 40 << 20, "extension": "NONE"}
_AMPERE |= {"core_memory": 164 << 10, "block_memory": 163 << 10, "threads": 2048}
_TURING = {"cores": 40, "fpus": 64, "clock": 1.59, "l2": 4 << 20, "extension": "NONE"}
_TURING |= {"core_memory": 64 << 10, "block_memory": 64 << 10, "threads": 1024}
_CARDS = {"h100": _HOPPER, "h200": _HOPPER, "a100": _AMPERE, "t4": _TURING}
_CUDA_PACKAGES = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_CPU = "XLA CPU"


def compiler_of(device: Device) -> str:
    """The compiler that `compile_for` uses here: `libtpu <version>`, `XLA GPU (jax-cuda12-plugin <version>)` or `XLA CPU`."""
    if device.platform == "cpu":
        return _CPU
    if device.platform == "tpu":
        return f"libtpu {version('libtpu')}" if find_spec("libtpu") else _CPU
    for package in _CUDA_PACKAGES:
        try:
            return f"XLA GPU ({package} {version(package)})"
        except PackageNotFoundError:
            continue
    return _CPU


def is_target_compiler(compiler: str) -> bool:
    """Whether a compiler's name is that of the device's own."""
    return compiler != _CPU


def prepare(devices: int = 256) -> None:
    """Call once before anything touches JAX: nothing is run, so no accelerator of this machine is opened.

    Where JAX has started already, its devices stay as they are.

    Args:
      devices: most devices of a mesh, for XLA's CPU compiler, which needs virtual ones.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no metadata server
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second process dies on libtpu's lock
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", devices)
        jax.config.update("jax_platforms", "cpu")


def mesh_for(device: Device, mesh: str) -> Mesh:
    """The mesh of `--mesh` over devices of that kind, by the target's own compiler, or over virtual CPU devices without it.

    Raises:
      UserError: a mesh that cannot be read, or one that no slice has the chips for.
    """
    sizes = parse_mesh(mesh)
    wanted = math.prod(sizes.values())
    devices = _devices(device, wanted)
    shape, kinds = tuple(sizes[axis] for axis in AXES), (AxisType.Auto,) * len(AXES)
    if wanted < len(devices):  # a part of a slice, whose wiring JAX's own order does not know
        return Mesh(np.array(devices[:wanted]).reshape(shape), AXES, axis_types=kinds)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def _devices(device: Device, wanted: int) -> list:
    if not is_target_compiler(compiler_of(device)):
        devices = jax.devices("cpu")
        if wanted > len(devices):
            raise UserError(
                f"{wanted} devices are needed and {len(devices)} virtual ones found; call dcore_jax.aot.prepare({wanted}) first"
            )
        return devices
    if device.platform == "gpu":
        return _gpus(device, wanted)
    for slice_ in _SLICES[device.name]:
        if math.prod(map(int, slice_.split("x"))) >= wanted:
            return _tpus(device.name, slice_)
    raise UserError(
        f"{wanted} chips are more than {device.name} is planned for here, {_SLICES[device.name][-1]}"
    )


@lru_cache(maxsize=32)
def _tpus(name: str, slice_: str) -> list:
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{slice_}").devices


@lru_cache(maxsize=32)
def _gpus(device: Device, count: int) -> list:
    from jax.experimental import topologies

    major, minor = device.compute_capability.split(".")
    facts = _CARDS[device.name] | {"major": major, "minor": minor, "kind": device.kind}
    text = _GPU_INFO.format(**facts, bandwidth=int(device.bandwidth), memory=device.memory)
    return topologies.get_topology_desc(platform="cuda", target_config=text, topology=f"1x1x{count}").devices
