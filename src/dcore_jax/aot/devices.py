"""Accelerators by name, with the facts that memory and time are planned by. Each fact is the vendor's."""

from dataclasses import dataclass
from typing import Literal

from dcore_jax.errors import UserError
from dcore_jax.target import Target

_GIB = 2**30
# JAX takes this share of a GPU's memory at its first use (XLA_PYTHON_CLIENT_MEM_FRACTION); a TPU gives all of it.
_GPU_SHARE = 0.75


@dataclass(frozen=True)
class Device:
    """One chip. Rates are peaks: no program reaches them."""

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    kind: str  # as jax.Device.device_kind
    memory: int  # bytes that the chip has, as its compiler or driver counts them
    peak_flops: float  # dense bf16 matrix products, FLOP/s (T4: fp16)
    bandwidth: float  # of its memory, bytes/s
    interconnect: (
        float  # bytes/s that it sends to its neighbours, all links together, and receives at the same time
    )
    source: str
    compute_capability: str = ""  # of an NVIDIA GPU

    @property
    def usable(self) -> int:
        """Bytes that a program may use under JAX's defaults."""
        return int(self.memory * (_GPU_SHARE if self.platform == "gpu" else 1))

    @property
    def target(self) -> Target:
        """What programs are traced for."""
        return Target(self.platform, self.kind, self.compute_capability)


_TPU_DOCS = "docs.cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA's data sheet of the "
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        # Memory of a TPU as libtpu counts it where it refuses a program; the reserve of its runtime is already taken off.
        Device("v5p", "tpu", "TPU v5", int(95.74 * _GIB), 459e12, 2765e9, 600e9, _TPU_DOCS + "v5p"),
        Device("v5e", "tpu", "TPU v5 lite", int(15.75 * _GIB), 197e12, 819e9, 200e9, _TPU_DOCS + "v5e"),
        Device("v6e", "tpu", "TPU v6 lite", int(31.25 * _GIB), 918e12, 1640e9, 448e9, _TPU_DOCS + "v6e"),
        # Memory of a GPU as its driver reports it. NVLink's figure counts both directions: half of it is sent.
        Device("h100", "gpu", "NVIDIA H100 80GB HBM3", 84_942_979_072, 989e12, 3.352e12, 450e9, _NVIDIA + "H100 SXM", "9.0"),
        Device("h200", "gpu", "NVIDIA H200", 150_754_820_096, 989e12, 4.8e12, 450e9, _NVIDIA + "H200 SXM", "9.0"),
        Device("a100", "gpu", "NVIDIA A100-SXM4-80GB", 85_100_068_864, 312e12, 2.039e12, 300e9, _NVIDIA + "A100 80GB SXM", "8.0"),
        # PCIe 3.0 x16 is its only link; it has no bf16 units, and XLA computes bf16 there in float32.
        Device("t4", "gpu", "Tesla T4", 15_843_721_216, 65e12, 320e9, 16e9, _NVIDIA + "T4", "7.5"),
    )
}  # fmt: skip


def device_of(name: str) -> Device:
    """The device of a name. Raises UserError, naming those that are known, for another one."""
    if name not in DEVICES:
        raise UserError(f"device {name!r} is unknown; choose one of {', '.join(DEVICES)}")
    return DEVICES[name]
