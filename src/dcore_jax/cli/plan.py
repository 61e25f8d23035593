"""`dcore plan`: what a recipe needs on a device, before one is rented."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.cli.options import option_fields, parse_options
from dcore_jax.config import find_config, read_yaml
from dcore_jax.errors import UserError
from dcore_jax.mesh import parse_mesh
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig

DESCRIPTION = """What a recipe needs on a device: memory by part, whether it fits, what makes it fit, wire, FLOPs, time and price.

  dcore plan --config sft_qwen3_8b --model 8b --device h100 --mesh fsdp=8 --price 2.5
  dcore plan --config rl_qwen3_8b --device v5p --mesh fsdp=8 --json plan.json
  dcore plan --table --device v5p v6e h100          the shipped presets over devices, as Markdown

From shapes alone: nothing is allocated, and of a model's folder config.json is read. The device's own compiler is used where its
wheel is installed (jax[tpu], jax[cuda12]), else XLA's for CPUs.

Every other option is the recipe's (dcore sft --help, dcore rl --help): --accumulation 2, --compute.remat dots."""
# Fields that only RL's configs have: what tells a config file of RL from one of SFT.
_RL_ONLY = {"algorithm", "rollout", "engine", "prompts", "updates", "reward"}
_MESH = "fsdp=8"
_MOST_CHIPS = 64  # that a change may ask for
# D-CORE's data, where none are named: records of SFT, prompts of RL.
_SAMPLES = {"sft": 40_000, "rl": 5_000}


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made for, beside the recipe's own options."""

    device: tuple[str, ...] = ()
    """v5p, v5e, v6e, h100, h200, a100, t4, or cpu: this machine; several with --table."""
    json: str = ""
    """File that the plan is written to, as one JSON object."""
    price: float | None = None
    """Price of one chip for an hour, in any currency."""
    memory_reserve: str = ""
    """Memory that is held back: a share (0.1) or a size (8GiB); without it a quarter of a GPU's, as JAX does, none of a TPU's."""
    samples: int | None = None
    """Records (SFT) or prompts (RL) of the data; without it D-CORE's, 40,000 and 5,000."""
    sample_length: int = 2048
    """Mean tokens of a sample (SFT) or of a prompt (RL)."""
    response_length: int = 1024
    """Mean tokens of a response (RL)."""
    efficiency: float = 0.5
    """Share of the device's peak rates that a step is expected to reach."""
    changes: bool = True
    """Compile changes where the plan does not fit, until one does."""
    table: bool = False
    """The shipped presets over the devices of --device, as a Markdown table."""

    def __post_init__(self) -> None:
        for name in ("sample_length", "response_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.samples is not None and self.samples < 1:
            raise UserError(f"samples={self.samples} must be at least 1")
        if not 0 < self.efficiency <= 1:
            raise UserError(f"efficiency={self.efficiency} is a share of the peak rates, in (0, 1]")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise UserError(f"price={self.price} must be a number of at least 0")


def run(arguments: Sequence[str]) -> None:
    """Parses, compiles, prints the plan, and writes its JSON."""
    own, recipe = _divide(arguments)
    options = parse_options(
        PlanOptions, own, description=DESCRIPTION, default_config=lambda _: None, program="dcore plan"
    )
    if options.table:
        _table(options, recipe)
        return
    name, config = _recipe(recipe)
    plan = _plan(options, name, config)
    print(plan[0])
    if options.json:
        from dcore_jax.atomic import write_text_atomic

        write_text_atomic(Path(options.json), json.dumps(plan[1], indent=2) + "\n")
        print(f"wrote {options.json}")


def _plan(options: PlanOptions, name: str, config: Any) -> tuple[str, dict[str, Any]]:
    from dcore_jax import plan

    if len(options.device) != 1:
        raise UserError(
            "give one --device: v5p, v5e, v6e, h100, h200, a100, t4, or cpu; several with --table"
        )
    mesh = parse_mesh(config.mesh or _MESH)
    _prepare(mesh)
    device = plan.device_named(options.device[0])
    setting = plan.Setting(config, plan.model_named(config), device, mesh)
    made = plan.make_plan(
        setting,
        _workload(options, config),
        reserve=_bytes(options.memory_reserve, device.memory),
        try_changes=options.changes,
        report=_say,
    )
    return plan.plan_text(made, config=name, model=config.model), plan.plan_json(
        made, config=name, model=config.model
    )


def _table(options: PlanOptions, recipe: Sequence[str]) -> None:
    from dcore_jax import plan

    asked = _value(recipe, "--mesh")
    _prepare(parse_mesh(asked or _MESH))
    names = options.device or tuple(name for name in plan.DEVICES if name != "t4")
    devices = [plan.device_named(name) for name in names]
    chosen = _values(recipe, "--config") or plan.planned_presets()
    rows = []
    for name in chosen:
        _, config = _recipe(["--config", name, *(("--mesh", asked) if asked else ())])
        mesh = parse_mesh(config.mesh or _MESH)  # LoRA's presets are for one chip
        made = {}
        for device in devices:
            _say(f"{name} on {device.name}")
            setting = plan.Setting(config, plan.model_named(config), device, mesh)
            made[device.name] = plan.make_plan(
                setting,
                _workload(options, config),
                reserve=_bytes(options.memory_reserve, device.memory),
                try_changes=options.changes,
                report=_say,
            )
        rows.append((name, made))
    print(plan.plan_table(rows))


def _say(text: str) -> None:
    """On stderr: the plan and the table are what stdout is for."""
    print(f"plan: {text}", file=sys.stderr, flush=True)


def _prepare(mesh: dict[str, int]) -> None:
    from dcore_jax import aot

    devices = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    aot.prepare(max(devices, _MOST_CHIPS))


def _workload(options: PlanOptions, config: Any) -> Any:
    from dcore_jax.plan import Workload

    samples = options.samples or _SAMPLES["sft" if isinstance(config, SFTConfig) else "rl"]
    return Workload(
        samples, options.sample_length, options.response_length, options.price, options.efficiency
    )


def _recipe(arguments: Sequence[str]) -> tuple[str, SFTConfig | RLConfig]:
    """The recipe's config, and its name for the page."""
    named = _value(arguments, "--config")
    if named is None and not _value(arguments, "--model"):
        raise UserError(
            "give --config, as `dcore configs` lists them, or --model: dcore plan --config sft_qwen3_8b --device h100"
        )
    values = read_yaml(find_config(named)) if named else {}
    keys = set(values) if isinstance(values, dict) else set()
    if keys & {"seeds", "decompose"}:
        raise UserError(f"{named} is a config of dcore distill; plans are made for SFT and RL")
    kind: Any = RLConfig if keys & _RL_ONLY else SFTConfig
    config: SFTConfig | RLConfig = parse_options(
        kind, arguments, description=DESCRIPTION, default_config=lambda _: None, program="dcore plan"
    )
    return Path(named).stem if named else "SFT's defaults", config


def _divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The plan's own options, and the recipe's; `--help` is the plan's."""
    own = {dotted for dotted, *_ in option_fields(PlanOptions)}
    own |= {f"no-{name}" for name in own} | {"help"}
    mine: list[str] = []
    recipe: list[str] = []
    current = recipe
    for word in arguments:
        if word == "-h" or word.startswith("--"):
            flag = word.lstrip("-").partition("=")[0].replace("_", "-")
            current = mine if word == "-h" or flag in own else recipe
        current.append(word)
    return mine, recipe


def _bytes(text: str, memory: int) -> int | None:
    """A reserve: a share of the memory or a size; None where nothing is said."""
    if not text:
        return None
    units = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        number = float(text.removesuffix(unit))
    except ValueError:
        number = -1.0
    size = number * units[unit] if unit else number * memory
    if not 0 <= size < memory or (not unit and number >= 1):
        raise UserError(
            f"memory_reserve={text} is neither a share of the memory (0.1) nor a size below it (8GiB, 500MiB, 8GB)"
        )
    return int(size)


def _value(arguments: Sequence[str], flag: str) -> str | None:
    return next(iter(_values(arguments, flag)), None)


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    found: list[str] = []
    for index, word in enumerate(arguments):
        if word == flag:
            for following in arguments[index + 1 :]:
                if following.startswith("--"):
                    break
                found.append(following)
        elif word.startswith(f"{flag}="):
            found.append(word.partition("=")[2])
    return found
