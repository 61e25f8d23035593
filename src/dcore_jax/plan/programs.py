"""The programs of a recipe, compiled for a mesh, each with what it holds on a device by part."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax

from dcore_jax import aot
from dcore_jax.aot import AotProgram, Built, Device
from dcore_jax.aot.programs import engine_cache
from dcore_jax.engines.native.engine import KEPT_PREFILLS
from dcore_jax.errors import UserError
from dcore_jax.models import ModelConfig
from dcore_jax.models.attention import choose_implementation
from dcore_jax.plan.parts import argument_parts, in_order, memory_parts
from dcore_jax.plan.work import Shape
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.rows import row_lengths
from dcore_jax.sft.config import SFTConfig
from dcore_jax.target import Target, compiling_for

Recipe = SFTConfig | RLConfig
# The engine's layers are unrolled: all of them would compile for minutes, and its temporaries are those of one layer.
_ENGINE_LAYERS = 2
_REFUSED = re.compile(r"Used ([\d.]+)([KMG])i?B? of")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Setting:
    """What a plan is made for: a recipe's config, a model's shapes, a mesh of a device."""

    config: Recipe
    model: ModelConfig
    device: Device
    mesh: dict[str, int]  # by axis

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.batch_shards * self.mesh["tensor"]

    @property
    def batch_shards(self) -> int:
        """Parts that rows are divided into."""
        return self.mesh["data"] * self.mesh["fsdp"]

    @property
    def engine_off(self) -> bool:
        """Whether the native engine gives weights and cache back while the policy is updated."""
        return isinstance(self.config, RLConfig) and not self.config.rollout.staleness

    @property
    def mesh_text(self) -> str:
        """As `--mesh` takes it."""
        return ",".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1) or "1"

    @property
    def row_length(self) -> int:
        """Positions of the longest row."""
        if isinstance(self.config, SFTConfig):
            return self.config.packing.length
        return row_lengths(self.config.row_length)[-1]

    @property
    def target(self) -> Target:
        """What programs are traced for: the device, or a CPU where its compiler is not installed."""
        return self.device.target if by_target_compiler(self.device) else Target("cpu")

    @property
    def widened(self) -> bool:
        """Whether the compiler used here computes bfloat16 in float32, which the device's own does not."""
        return not by_target_compiler(self.device) and self.config.compute.dtype == "bfloat16"

    def shape(self) -> Shape:
        """For counting work: that of the device itself, whatever compiles here."""
        compute = self.config.compute.compute()
        attention = choose_implementation(
            compute.attention,
            platform=self.device.platform,
            dtype=jax.numpy.dtype(compute.dtype),
            head_dim=self.model.head_dim,
            length=self.row_length,
        )
        return Shape(
            self.model,
            compute,
            attention,
            self.batch_shards,
            self.mesh["tensor"],
            self.device.platform,
            self.config.lora or None,
        )


@dataclass(frozen=True)
class ProgramPlan:
    """One compiled program: bytes on a device while it runs, with what lies beside it."""

    name: str
    parts: dict[str, int]
    compiler: str
    seconds: float  # of its compilation
    collectives: tuple[aot.Collective, ...]
    refused: str = ""  # the compiler's words, where it refuses the program for its memory

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def wire(self) -> float:
        """Bytes that a device sends in a run."""
        return float(sum(collective.wire_bytes for collective in self.collectives))


def check_divides(setting: Setting) -> None:
    """Raises UserError where rows or slots cannot be divided among the devices."""
    config, shards = setting.config, setting.batch_shards
    if isinstance(config, SFTConfig) and config.rows // config.accumulation % shards:
        raise UserError(
            f"rows={config.rows} in accumulation={config.accumulation} microbatches do not divide among data x fsdp = {shards} "
            "devices; change --rows, --accumulation or --mesh"
        )
    if isinstance(config, RLConfig) and config.engine.name == "native" and config.engine.slots % shards:
        raise UserError(
            f"engine.slots={config.engine.slots} do not divide among data x fsdp = {shards} devices; change --engine.slots "
            "or --mesh"
        )


def by_target_compiler(device: Device) -> bool:
    """Whether the compiler used here is the device's own; a CPU's is XLA's for CPUs."""
    return device.platform == "cpu" or aot.compiler_of(device) != "XLA CPU"


ENGINE_PROGRAMS = ("prefill", "decode")
_measured: dict[tuple, tuple[ProgramPlan, ...]] = {}


def recipe_programs(setting: Setting) -> Iterator[ProgramPlan]:
    """All programs of the recipe, compiled one after the other; those compiled before are remembered.

    Without the device's own compiler, memory is the same on every device, and compiled once for all.
    """
    compiler = setting.device.name if by_target_compiler(setting.device) else "XLA CPU"
    key = (repr(setting.config), setting.model, setting.mesh_text, compiler)
    if key in _measured:
        yield from _measured[key]
        return
    found = []
    for program in itertools.chain(training_programs(setting), engine_programs(setting)):
        found.append(program)
        yield program
    _measured[key] = tuple(found)


def training_programs(setting: Setting) -> Iterator[ProgramPlan]:
    """SFT's step; of RL the scoring pass, the update's pass and its optimizer step. One after the other, as they are compiled."""
    config = setting.config
    if isinstance(config, SFTConfig):
        tokens = config.rows // config.accumulation * config.packing.length
        yield _compiled(setting, aot.sft_program(config, setting.model), tokens, config.accumulation)
        return
    tokens = setting.batch_shards * setting.row_length
    for make in (aot.rl_score_program, aot.rl_update_program, aot.rl_finish_program):
        yield _compiled(setting, make(config, setting.model), tokens, 2)


def engine_programs(setting: Setting) -> Iterator[ProgramPlan]:
    """The native engine's prefill and decoding, while the trainer's state lies beside them."""
    config = setting.config
    if isinstance(config, SFTConfig) or config.engine.name != "native":
        return
    few = replace(setting.model, num_layers=min(_ENGINE_LAYERS, setting.model.num_layers))
    mesh = aot.mesh_for(setting.device, setting.mesh_text)
    prefilled = 0  # prompts that are kept while their groups wait for slots
    for make in (aot.prefill_program, aot.decode_program):
        compiled = aot.compile_for(setting.device, mesh, make(config, few))
        with compiling_for(setting.target):
            whole = make(config, setting.model).build(mesh)
        parts = argument_parts(whole)
        if compiled.name == "prefill":
            # Its output is a cache of its prompts, in every layer, beside that of the slots.
            parts["engine_cache"] = aot.device_bytes(engine_cache(config, setting.model, mesh))
            prefilled = KEPT_PREFILLS * compiled.output * setting.model.num_layers // few.num_layers
        parts["prefilled"] = prefilled
        parts["workspace"] = compiled.temporaries // (2 if setting.widened else 1)
        yield ProgramPlan(
            compiled.name, in_order(parts), compiled.compiler, compiled.seconds, compiled.collectives
        )


def _compiled(setting: Setting, program: AotProgram, tokens: int, accumulation: int) -> ProgramPlan:
    mesh = aot.mesh_for(setting.device, setting.mesh_text)
    with compiling_for(setting.target):
        built = program.build(mesh)
    try:
        compiled = aot.compile_for(setting.device, mesh, program)
    except jax.errors.JaxRuntimeError as error:
        return _refused(setting, program, built, error)
    parts = memory_parts(
        setting.shape(),
        built,
        compiled,
        tokens=tokens,
        head_tokens=tokens,
        accumulation=accumulation,
        target=setting.target,
        widened=setting.widened,
    )
    if setting.device.platform == "cpu":
        # Products on a CPU pack a copy of an operand, which XLA does not count; the largest operand is a block of logits.
        parts["product_buffers"] = parts["logits"]
    return ProgramPlan(program.name, parts, compiled.compiler, compiled.seconds, compiled.collectives)


def _refused(setting: Setting, program: AotProgram, built: Built, error: Exception) -> ProgramPlan:
    """What is known of a program that its compiler refuses for its memory: libtpu names the bytes that temporaries take."""
    line = " ".join(str(error).split())
    found = _REFUSED.search(line)
    if "RESOURCE_EXHAUSTED" not in line or found is None:
        raise UserError(
            f"{aot.compiler_of(setting.device)} refuses the {program.name} for {setting.device.name}: {line[:300]}"
        ) from None
    used = int(float(found[1]) * _UNITS[found[2]])
    parts = argument_parts(built)
    parts["workspace"] = used
    return ProgramPlan(
        program.name, in_order(parts), aot.compiler_of(setting.device), 0.0, (), refused=line[:300]
    )
