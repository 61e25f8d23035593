"""`make_plan`: what a recipe needs on a device, from shapes alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from dcore_jax.aot import Device
from dcore_jax.plan.changes import Tried, first_change
from dcore_jax.plan.programs import (
    ProgramPlan,
    Recipe,
    Setting,
    by_target_compiler,
    check_divides,
    recipe_programs,
)
from dcore_jax.plan.roofline import Cost, Phase, Rates, recipe_cost
from dcore_jax.plan.work import (
    HEAD_PRODUCTS,
    Work,
    decode_work,
    optimizer_work,
    prefill_work,
    training_wire,
    training_work,
)
from dcore_jax.sft.config import SFTConfig


@dataclass(frozen=True)
class Workload:
    """What shapes do not say: how much data there are, how long they are, and what a chip costs."""

    samples: int  # records of SFT, prompts of RL
    sample_length: int  # mean tokens of an SFT sample, or of an RL prompt
    response_length: int = 0  # mean tokens of a response (RL)
    price: float | None = None  # of one chip for an hour
    efficiency: float = 0.5  # share of the device's peak rates that a step reaches


@dataclass(frozen=True)
class Plan:
    """Memory, work, time and cost of a recipe on a mesh of one device."""

    setting: Setting
    workload: Workload
    reserve: int  # bytes of the device that no program may use
    programs: tuple[ProgramPlan, ...]
    phases: tuple[Phase, ...]
    cost: Cost
    change: Tried | None  # the first change that makes it fit, where it does not
    tried: tuple[Tried, ...] = field(default=())

    @property
    def largest(self) -> ProgramPlan:
        """The program that needs the most memory."""
        return max(self.programs, key=lambda program: program.peak)

    @property
    def peak(self) -> int:
        """Bytes of a device at the most."""
        return self.largest.peak

    @property
    def usable(self) -> int:
        """Bytes of a device that programs may use."""
        return self.setting.device.memory - self.reserve

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return self.peak <= self.usable

    @property
    def step_seconds(self) -> float:
        """Of a step at the device's peak rates: no step is faster."""
        rates = rates_of(self.setting.device)
        return sum(phase.seconds(rates) for phase in self.phases)

    @property
    def step_work(self) -> Work:
        """Of a step, all its programs together."""
        total = Work(0.0, 0.0, 0.0)
        for phase in self.phases:
            total += phase.work.times(phase.runs)
        return total

    @property
    def step_wire(self) -> float:
        """Bytes that a device sends in a step."""
        return sum(phase.runs * phase.wire for phase in self.phases)


def make_plan(
    setting: Setting,
    workload: Workload,
    *,
    reserve: int | None = None,
    try_changes: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Compiles the recipe's programs for the device and adds up what they say.

    Args:
      reserve: bytes of a device that are held back; None: what JAX leaves by default, a quarter of a GPU's and none of a TPU's.
      try_changes: compile changes where the plan does not fit, until one does.
      report: told before each compilation what it is for.

    Raises:
      UserError: a mesh that does not divide model or rows, or what the device cannot do.
    """
    reserve = setting.device.memory - setting.device.usable if reserve is None else reserve
    usable = setting.device.memory - reserve
    report("compiling")
    check_divides(setting)
    programs = tuple(recipe_programs(setting))
    change, tried = None, list[Tried]()
    largest = max(programs, key=lambda program: program.peak)
    if try_changes and largest.peak > usable:
        change, tried = first_change(setting, recipe_programs, usable, largest=largest.name, report=report)
    phases = step_phases(setting, workload, programs)
    rates = rates_of(setting.device)
    seconds = sum(phase.seconds(rates, workload.efficiency) for phase in phases)
    cost = recipe_cost(seconds, recipe_steps(setting.config, workload), setting.devices, workload.price)
    return Plan(setting, workload, reserve, programs, phases, cost, change, tuple(tried))


def rates_of(device: Device) -> Rates:
    """The device's peaks."""
    return Rates(device.peak_flops, device.bandwidth, device.interconnect)


def recipe_steps(config: Recipe, workload: Workload) -> int:
    """Optimizer steps of SFT, rounds of RL: as the config says, or as its epochs over the data need."""
    if config.steps is not None:
        return config.steps
    if isinstance(config, SFTConfig):
        rows = math.ceil(workload.samples * workload.sample_length / config.packing.length)
        return math.ceil(config.epochs * rows / config.rows)
    return math.ceil(config.epochs * workload.samples / config.prompts)


def step_phases(setting: Setting, workload: Workload, programs: tuple[ProgramPlan, ...]) -> tuple[Phase, ...]:
    """The programs of a step, each with how often it runs, its work and its wire."""
    # XLA's CPU compiler sends float32 and adds gradients up everywhere, which no accelerator's does.
    own = by_target_compiler(setting.device)
    wire = {
        program.name: program.wire if own else wire_by_shapes(setting, program.name) for program in programs
    }
    parts = {program.name: program.parts for program in programs}

    def phase(name: str, runs: int | float, work: Work, program: str | None = None) -> Phase:
        return Phase(name, runs, work, wire.get(program or name, 0.0), setting.devices)

    if isinstance(setting.config, SFTConfig):
        config, shape = setting.config, setting.shape()
        tokens = config.rows * config.packing.length
        sample = min(workload.sample_length, config.packing.length)
        work = training_work(
            shape,
            program="SFT step",
            tokens=tokens,
            row=config.packing.length,
            sample=sample,
            microbatches=config.accumulation,
        )
        return (phase("SFT step", 1, work + optimizer_work(shape, parts.get("SFT step", {}))),)
    return tuple(_rl_phases(setting, workload, phase, parts))


def wire_by_shapes(setting: Setting, program: str) -> float:
    """`training_wire` of a program; 0 of one that devices work on by themselves."""
    if program not in HEAD_PRODUCTS:
        return 0.0
    config = setting.config
    microbatches = config.accumulation if isinstance(config, SFTConfig) else 1
    length = setting.row_length
    rows = config.rows if isinstance(config, SFTConfig) else setting.batch_shards
    return training_wire(
        setting.shape(),
        program=program,
        tokens=rows * length,
        fsdp=setting.mesh["fsdp"],
        microbatches=microbatches,
    )


def _rl_phases(setting: Setting, workload: Workload, phase: Any, parts: dict[str, dict[str, int]]) -> Any:
    config, shape = setting.config, setting.shape()
    assert not isinstance(config, SFTConfig)
    prompt = min(workload.sample_length, config.rollout.max_prompt)
    response = min(workload.response_length, config.rollout.max_response)
    shared = config.packing.mode == "shared" or (
        config.packing.mode == "auto" and not shape.attention.startswith("splash")
    )
    tokens = (
        config.prompts * (prompt + config.rollout.group * response)
        if shared
        else config.responses * (prompt + response)
    )
    row = setting.row_length
    in_a_pass = setting.batch_shards * row
    passes = math.ceil(tokens / config.updates / in_a_pass) * config.updates
    share = config.responses * response / tokens  # of the positions, those that the head runs on
    if config.engine.name == "native":
        shards = setting.batch_shards
        prefills = math.ceil(config.prompts / shards)
        yield phase("prefill", prefills, prefill_work(shape, prompts=shards, length=prompt))
        slots = min(config.engine.slots, config.responses)
        length = prompt + response / 2
        yield phase(
            "decode",
            math.ceil(config.responses / slots) * response,
            decode_work(shape, slots=slots, length=length),
            "",
        )
    models = 1 + config.running_algorithm().needs_reference
    for name, runs in (("RL score", models * passes), ("RL update", passes)):
        work = training_work(
            shape,
            program=name,
            tokens=in_a_pass,
            row=row,
            sample=min(prompt + response, row),
            head_tokens=round(share * in_a_pass),
        )
        yield phase(name, runs, work)
    optimizer = optimizer_work(shape, parts.get("RL optimizer step", {}))
    yield phase("RL optimizer step", config.updates, optimizer)
    if config.engine.name == "native":
        size = jnp.dtype(shape.compute.dtype).itemsize * setting.model.num_parameters / setting.mesh["tensor"]
        work = Work(0.0, 0.0, 2.0 * size)
        fsdp = setting.mesh["fsdp"]
        yield Phase("weights to the engine", 1, work, size * (fsdp - 1) / fsdp, setting.devices)
