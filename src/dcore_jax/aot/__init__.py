"""Ahead-of-time compilation: a recipe's own programs compiled for TPUs and GPUs that are not there, from shapes alone."""

from dcore_jax.aot.compile import CompiledProgram, compile_for
from dcore_jax.aot.devices import DEVICES, Device, device_of
from dcore_jax.aot.hlo import Collective, Kernel
from dcore_jax.aot.models import MODELS, model_of
from dcore_jax.aot.programs import (
    AotProgram,
    Built,
    decode_program,
    device_bytes,
    prefill_program,
    rl_finish_program,
    rl_score_program,
    rl_update_program,
    sft_program,
)
from dcore_jax.aot.topology import compiler_of, mesh_for, prepare

__all__ = [
    "DEVICES", "MODELS", "AotProgram", "Built", "Collective", "CompiledProgram", "Device", "Kernel", "compile_for", "compiler_of",
    "decode_program", "device_bytes", "device_of", "mesh_for", "model_of", "prefill_program", "prepare", "rl_finish_program",
    "rl_score_program", "rl_update_program", "sft_program",
]  # fmt: skip
