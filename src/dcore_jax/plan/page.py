"""A plan in words, as a JSON object, and as a row of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from dcore_jax.aot import Collective
from dcore_jax.plan.changes import Tried
from dcore_jax.plan.plan import Plan, rates_of
from dcore_jax.plan.programs import ProgramPlan, by_target_compiler
from dcore_jax.sft.config import SFTConfig

_GIB = 2**30


def plan_json(plan: Plan, *, config: str, model: str) -> dict[str, Any]:
    """The plan as an object of numbers; sizes are bytes on one device, times are seconds."""
    setting, rates = plan.setting, rates_of(plan.setting.device)
    work = plan.step_work
    return {
        "fits": plan.fits,
        "peak_bytes": plan.peak,
        "device_bytes": setting.device.memory,
        "reserve_bytes": plan.reserve,
        "usable_bytes": plan.usable,
        "parts": dict(plan.largest.parts),
        "compiler": plan.largest.compiler,
        "target_compiler": by_target_compiler(setting.device),
        "first_change": None if plan.change is None else _change_json(plan.change),
        "tried": [_change_json(tried) for tried in plan.tried],
        "config": config,
        "model": model,
        "model_parameters": setting.model.num_parameters,
        "device": setting.device.name,
        "devices": setting.devices,
        "mesh": setting.mesh,
        "attention": setting.shape().attention,
        "peak_program": plan.largest.name,
        "programs": [_program_json(program) for program in plan.programs],
        "flops": work.flops,
        "useful_flops": work.useful,
        "wire_bytes": plan.step_wire,
        "phases": [
            {
                "name": phase.name,
                "runs": phase.runs,
                "flops": phase.work.flops,
                "useful_flops": phase.work.useful,
                "memory_bytes": phase.work.traffic,
                "wire_bytes": phase.wire,
                "seconds": phase.seconds(rates),
                "limit": phase.limit(rates),
            }
            for phase in plan.phases
        ],
        "roofline_step_seconds": plan.step_seconds,
        "step_seconds": plan.step_seconds / plan.workload.efficiency,
        "efficiency": plan.workload.efficiency,
        "steps": plan.cost.steps,
        "hours": plan.cost.hours,
        "chip_hours": plan.cost.chip_hours,
        "price_per_chip_hour": plan.workload.price,
        "price": plan.cost.price,
        "samples": plan.workload.samples,
        "sample_length": plan.workload.sample_length,
        "response_length": plan.workload.response_length or None,
    }


def plan_text(plan: Plan, *, config: str, model: str) -> str:
    """The plan in some twenty lines for a terminal."""
    setting = plan.setting
    chips = f"{setting.devices} x {setting.device.kind}"
    kind = "SFT" if isinstance(setting.config, SFTConfig) else "RL"
    lines = [
        (
            "plan",
            f"{kind} by {config} of {model} ({setting.model.num_parameters / 1e9:.2f} B parameters, "
            f"{setting.model.num_layers} layers) on {chips}, mesh {setting.mesh_text}, attention {setting.shape().attention}",
        ),
        ("compiler", _compiler(plan)),
        ("memory", _fits(plan)),
        *(
            ("", f"{_size(size):>11}  {name.replace('_', ' ')}")
            for name, size in plan.largest.parts.items()
            if size
        ),
    ]
    if len(plan.programs) > 1:
        lines.append(("programs", ", ".join(f"{p.name} {_size(p.peak)}" for p in plan.programs)))
    lines += [("refused", p.refused) for p in plan.programs if p.refused]
    lines += [("wire", text) for text in _wire(plan)]
    lines += _time(plan)
    if not plan.fits:
        lines.append(("change", _change(plan)))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def plan_table(rows: Sequence[tuple[str, Mapping[str, Plan]]]) -> str:
    """Presets over devices, as Markdown: GiB a device at the most, in bold where they fit; else what makes them fit."""
    devices = list(rows[0][1]) if rows else []
    lines = [
        f"| config | model | chips | {' | '.join(devices)} |",
        f"|---|---|--:|{'--:|' * len(devices)}",
    ]
    compilers = set()
    for name, plans in rows:
        first = plans[devices[0]].setting
        cells = [_cell(plans[device]) for device in devices]
        compilers |= {f"{device}: {plans[device].largest.compiler}" for device in devices}
        lines.append(f"| `{name}` | {first.config.model} | {first.devices} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Compilers: {'; '.join(sorted(compilers))}."])


def _cell(plan: Plan) -> str:
    size = f"{plan.peak / _GIB:.1f}"
    if plan.fits:
        return f"**{size}**"
    return f"{size}; {plan.change.change.text}: {plan.change.peak / _GIB:.1f}" if plan.change else size


def collective_totals(programs: tuple[ProgramPlan, ...]) -> list[tuple[str, str, str, int, float]]:
    """(program, operation, dtype, times, bytes that a device sends) of the collectives of each program, largest first."""
    totals: dict[tuple[str, str, str], tuple[int, float]] = {}
    for program in programs:
        for collective in program.collectives:
            key = (program.name, collective.op, collective.dtype)
            times, sent = totals.get(key, (0, 0.0))
            totals[key] = (times + collective.times, sent + collective.wire_bytes)
    rows = [(*key, *value) for key, value in totals.items()]
    return sorted(rows, key=lambda row: -row[4])


def _compiler(plan: Plan) -> str:
    name, device = plan.largest.compiler, plan.setting.device
    seconds = sum(program.seconds for program in plan.programs)
    if by_target_compiler(device):
        return f"{name}, the device's own; {seconds:.0f} s"
    package = "jax[tpu]" if device.platform == "tpu" else "jax[cuda12]"
    return (
        f"{name} ({seconds:.0f} s): {device.name}'s own is not installed, so memory is an estimate: what the CPU compiler takes "
        "for temporaries, its float32 copies of bfloat16 counted as bfloat16. For the device's own compiler: "
        f"pip install '{package}' in an environment of its own (docs/plan.md)"
    )


def _fits(plan: Plan) -> str:
    device = plan.setting.device
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return (
        f"{_size(plan.peak)} a device in the {plan.largest.name}, of {_size(plan.usable)} usable: {verdict} "
        f"({_size(device.memory)} less a reserve of {_size(plan.reserve)})"
    )


def _how_counted(plan: Plan) -> str:
    return (
        "by the compiler"
        if by_target_compiler(plan.setting.device)
        else "by the weights' shapes in the compute dtype"
    )


def _wire(plan: Plan) -> list[str]:
    if plan.setting.devices == 1:
        return ["none: one device"]
    total = f"{_size(plan.step_wire)} sent by each device in a step, {_how_counted(plan)}"
    if not by_target_compiler(plan.setting.device):
        return [total]
    rows = [row for row in collective_totals(plan.programs) if row[4] >= 2**20]
    found = [
        f"{program}: {times} x {op} in {dtype}, {_size(sent)} sent by each device"
        for program, op, dtype, times, sent in rows[:6]
    ]
    return [*found, total]


def _time(plan: Plan) -> list[tuple[str, str]]:
    rates, work, share = rates_of(plan.setting.device), plan.step_work, plan.workload.efficiency
    if not rates.flops:
        return [("work", f"{_flops(work.useful)} a step needed, {_flops(work.flops)} executed")]
    lines = [
        ("work", f"{_flops(work.useful)} a step needed, {_flops(work.flops)} executed"),
        (
            "time",
            f"{plan.step_seconds / share:.3g} s a step, at {share:.0%} of the peak rates (no step takes less than "
            f"{plan.step_seconds:.3g} s)",
        ),
    ]
    if len(plan.phases) > 1:
        for phase in plan.phases:
            seconds = phase.seconds(rates) / share
            lines.append(
                ("", f"{seconds:8.3g} s  {phase.name}, {phase.runs:g} runs, limited by {phase.limit(rates)}")
            )
    cost = plan.cost
    price = "" if cost.price is None else f", {cost.price:,.2f} at {plan.workload.price:g} a chip-hour"
    lines.append(
        (
            "run",
            f"{cost.steps:,} steps{_data(plan)}: {cost.hours:,.1f} hours, {cost.chip_hours:,.0f} chip-hours{price}",
        )
    )
    return lines


def _data(plan: Plan) -> str:
    config, workload = plan.setting.config, plan.workload
    if config.steps is not None:
        return ""
    if isinstance(config, SFTConfig):
        return (
            f", {config.epochs} epochs of {workload.samples:,} samples of {workload.sample_length:,} tokens"
        )
    return (
        f", {config.epochs} epochs of {workload.samples:,} prompts of {workload.sample_length:,} tokens, responses of "
        f"{workload.response_length:,}"
    )


def _change(plan: Plan) -> str:
    if plan.change is None:
        tried = ", then ".join(f"{t.change.text} ({_size(t.peak)})" for t in plan.tried)
        return f"none that was compiled fits: {tried}" if tried else "none was tried"
    change = plan.change
    return f"fits with {change.change.text}: {_size(change.peak)} ({' '.join(change.change.options)})"


def _change_json(tried: Tried) -> dict[str, Any]:
    change = tried.change
    return {
        "text": change.text,
        "options": list(change.options),
        "mesh": change.setting.mesh_text,
        "peak_bytes": tried.peak,
        "fits": tried.fits,
    }


def _program_json(program: ProgramPlan) -> dict[str, Any]:
    return {
        "name": program.name,
        "peak_bytes": program.peak,
        "parts": dict(program.parts),
        "compile_seconds": round(program.seconds, 2),
        "refused": program.refused or None,
        "wire_bytes": program.wire,
        "collectives": [_collective_json(collective) for collective in program.collectives],
    }


def _collective_json(collective: Collective) -> dict[str, Any]:
    return {
        "op": collective.op,
        "dtype": collective.dtype,
        "shape": list(collective.shape),
        "group": collective.group,
        "times": collective.times,
        "wire_bytes": collective.wire_bytes,
    }


def _size(size: int | float) -> str:
    """Bytes in GiB, or in MiB below one."""
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / 2**20:.1f} MiB"


def _flops(count: int | float) -> str:
    """FLOPs in PFLOP, or in TFLOP below one."""
    return f"{count / 1e15:.3g} PFLOP" if count >= 1e15 else f"{count / 1e12:.3g} TFLOP"
