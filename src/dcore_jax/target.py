"""The machine that programs are traced for: the one that JAX runs on, or another one that they are only compiled for.

What depends on it (attention backends, kernels, block sizes) asks here. The choice is part of the key of JAX's caches: one
function can be traced for two targets in a process, and neither gets the other's program.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

_chosen = jax.make_user_context(None)


class Target(NamedTuple):
    """A kind of device."""

    platform: str  # cpu | gpu | tpu, as jax.default_backend() names them
    device_kind: str = ""  # as jax.Device.device_kind: "TPU v5p", "NVIDIA H100 80GB HBM3"
    compute_capability: str = ""  # of an NVIDIA GPU, as "9.0"


def target() -> Target:
    """The target in use: that of the innermost `compiling_for`, of `set_target`, or the machine's default backend."""
    chosen: Target | None = _chosen.value
    if chosen is not None:
        return chosen
    device = jax.devices()[0]
    return Target(
        jax.default_backend(), device.device_kind, str(getattr(device, "compute_capability", None) or "")
    )


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`."""
    chosen: Target | None = _chosen.value
    return jax.default_backend() if chosen is None else chosen.platform


def compiling_for(target: Target) -> AbstractContextManager[None]:
    """A context in which programs are traced for `target` instead: `with compiling_for(Target("tpu")): jitted.lower(...)`."""
    return _chosen(target)


def set_target(target: Target | None) -> None:
    """Traces for `target` from now on, in every thread; None: for the machine's default backend again."""
    _chosen.set_global(target)
