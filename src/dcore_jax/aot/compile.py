"""`compile_for`: one program, one mesh of one device, and what its compiler says of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from dcore_jax.aot.devices import Device, device_of
from dcore_jax.aot.hlo import Collective, Kernel, read_hlo
from dcore_jax.aot.programs import AotProgram, device_bytes
from dcore_jax.aot.topology import compiler_of, is_target_compiler, mesh_for
from dcore_jax.target import Target, compiling_for


@dataclass(frozen=True)
class CompiledProgram:
    """What a compiler says of a program; bytes are those of one device."""

    name: str
    device: Device
    mesh: Mapping[str, int]
    compiler: str  # of the target, or XLA's for CPUs
    arguments: int
    temporaries: int
    output: int
    aliased: int  # of the output, in the place of arguments that are given away
    compiler_peak: (
        int  # by libtpu's count, arguments included; 0 with other compilers, whose counts leave parts out
    )
    beside: Mapping[str, int]  # what else lies on the device meanwhile, by name
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]  # custom calls: Pallas, splash, cuDNN, cuBLAS
    seconds: float
    hlo: str  # after optimisation

    @property
    def by_target_compiler(self) -> bool:
        """Whether the device's own compiler made it; else XLA's CPU compiler did, and memory and kernels are its own."""
        return is_target_compiler(self.compiler)

    @property
    def peak(self) -> int:
        """Most bytes in use at once, arguments and outputs among them: libtpu's own count, with other compilers their sum.

        libtpu's `temporaries` of a large program hold part of its arguments too: there the sum is more than what is used.
        """
        return self.compiler_peak or self.arguments + self.temporaries + self.output - self.aliased

    @property
    def total(self) -> int:
        """`peak` and what lies beside it."""
        return self.peak + sum(self.beside.values())

    def kernel_count(self, part: str) -> int:
        """How many kernels have `part` in their name."""
        return sum(part in kernel.name for kernel in self.kernels)


def compile_for(device: Device | str, mesh: Mesh | str, program: AotProgram) -> CompiledProgram:
    """Compiles a program for a device: by the device's own compiler where that is installed, else by XLA's for CPUs.

    A program that compiles need not fit: libtpu refuses what takes more than the chip's memory by itself, a GPU's compiler
    refuses nothing, and neither knows what else lies there. Compare `total` with `Device.usable`. Devices that are not there have
    no host memory: with `optimizer.offload` the state still counts among the arguments.

    Args:
      mesh: of `mesh_for`, or as `--mesh` has it.

    Raises:
      UserError: an unknown device, a mesh that does not divide the model, or what the target cannot do.
      jax.errors.JaxRuntimeError: the compiler refuses the program; RESOURCE_EXHAUSTED where it says that it cannot fit.
    """
    device = device_of(device) if isinstance(device, str) else device
    mesh = mesh_for(device, mesh) if isinstance(mesh, str) else mesh
    compiler = compiler_of(device)
    own = is_target_compiler(compiler)
    target = device.target if own else Target("cpu")
    platform = {"tpu": "tpu", "gpu": "cuda"}[device.platform] if own else "cpu"
    start = time.perf_counter()
    with compiling_for(target):
        built = program.build(mesh)
        # The mesh's devices may not exist: tracing sees its shape alone (`jax.set_mesh` would run eager operations on them).
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = built.jitted.trace(*built.arguments).lower(lowering_platforms=(platform,))
        compiled = lowered.compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    collectives, kernels = read_hlo(text)
    return CompiledProgram(
        name=program.name,
        device=device,
        mesh=dict(mesh.shape),
        compiler=compiler,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        compiler_peak=memory.peak_memory_in_bytes if platform == "tpu" else 0,
        beside={name: device_bytes(tree) for name, tree in built.beside.items()},
        collectives=collectives,
        kernels=kernels,
        seconds=time.perf_counter() - start,
        hlo=text,
    )
