"""What can be changed where a plan does not fit: one change after the other, each kept, until a compiled plan fits."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dcore_jax.lora import LoraConfig
from dcore_jax.models.adapters import NF4_BLOCK
from dcore_jax.plan.programs import ENGINE_PROGRAMS, ProgramPlan, Setting
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig
from dcore_jax.training.config import Remat

_MOST_CHIPS = 64
_FEWEST_SLOTS = 8
_RANK = 16  # of adapters, as the shipped presets have it


@dataclass(frozen=True)
class Change:
    """A setting that differs from the asked one, in words and as options of the recipe's command."""

    text: str
    options: tuple[str, ...]
    setting: Setting


@dataclass(frozen=True)
class Tried:
    """A change that was compiled."""

    change: Change
    peak: int
    fits: bool


def first_change(
    setting: Setting,
    programs: Callable[[Setting], Iterable[ProgramPlan]],
    usable: int,
    *,
    largest: str,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Tried | None, list[Tried]]:
    """The first of `changes` that fits, by compiling, and all that were tried on the way.

    Args:
      programs: compiles a setting's programs, one after the other; the first that does not fit ends a change.
      largest: the program that does not fit; changes that cannot make it smaller are passed over.
    """
    tried: list[Tried] = []
    for change in changes(setting, largest):
        report(f"{largest} does not fit; trying {change.text}")
        peak = 0
        for program in programs(change.setting):
            peak = max(peak, program.peak)
            if peak > usable:
                largest = program.name
                break
        tried.append(Tried(change, peak, peak <= usable))
        if tried[-1].fits:
            return tried[-1], tried
    return None, tried


def changes(setting: Setting, largest: str = "") -> Iterator[Change]:
    """From the cheapest to the dearest; each stands on those before it, none of which needs another chip.

    Rematerialisation costs arithmetic, microbatches cost wire, the tensor axis costs more wire, chips cost money. On one chip
    LoRA comes before more chips; it is another recipe, so chips do not stand on it.

    Args:
      largest: the program that does not fit, where it is known.
    """
    decoding = largest in ENGINE_PROGRAMS
    in_file = isinstance(setting.config, RLConfig) and setting.config.reference_on_host
    lora = partial(_lora, reference_in_file=in_file)
    steps: list[Callable[[Setting], _Step]]
    steps = [_remat, _reference, _engine, _slots, _accumulation, _moments, _nf4, lora, _tensor, _chips]
    if largest:
        steps = [step for step in steps if step not in ((_remat, _engine) if decoding else (_slots,))]
    now, words, options = setting, dict[str, str](), dict[str, str | None]()
    for step in steps:
        before = now, dict(words), dict(options)
        # Chips are added to the mesh that was asked for.
        for new, texts, given in step(replace(now, mesh=setting.mesh) if step is _chips else now):
            now = new
            words.update(texts)
            options.update(given)
            said = ((f"--{name}", value) for name, value in options.items() if value is not None)
            flat = tuple(word for pair in said for word in pair if word)
            yield Change(" and ".join(filter(None, words.values())), flat, now)
        if step is lora:
            now, words, options = before


# (the changed setting, what is said of it by subject, options of the recipe's command: a value, "" for a switch, None: no longer)
_Step = Iterator[tuple[Setting, dict[str, str], dict[str, str | None]]]


def _with(setting: Setting, **changed: Any) -> Setting:
    return replace(setting, config=replace(setting.config, **changed))


def _remat(now: Setting) -> _Step:
    less: dict[str, tuple[Remat, ...]] = {
        "none": ("attention", "full"),
        "dots": ("attention", "full"),
        "attention": ("full",),
    }
    for remat in less.get(now.config.compute.remat, ()):
        compute: Any = {"remat": remat}
        new = _with(now, compute=replace(now.config.compute, **compute))
        yield new, {"remat": f"remat {remat}"}, {"compute.remat": remat}


def _reference(now: Setting) -> _Step:
    config = now.config
    if not isinstance(config, RLConfig) or config.reference_on_host:
        return
    if config.running_algorithm().needs_reference and not config.lora:  # LoRA's reference is the base
        new = _with(now, reference_on_host=True)
        yield new, {"reference": "reference on the host"}, {"reference-on-host": ""}


def _engine(now: Setting) -> _Step:
    config = now.config
    if isinstance(config, RLConfig) and config.engine.name == "native" and not now.engine_off:
        rollout = replace(config.rollout, staleness=0)
        new = _with(now, rollout=rollout)
        yield new, {"engine": "engine off during the update"}, {"rollout.staleness": "0"}


def _slots(now: Setting) -> _Step:
    config = now.config
    if not isinstance(config, RLConfig) or config.engine.name != "native":
        return
    slots = config.engine.slots // 2
    while slots >= max(now.batch_shards, _FEWEST_SLOTS) and slots % now.batch_shards == 0:
        new = _with(now, engine=replace(config.engine, slots=slots))
        yield new, {"slots": f"{slots} slots"}, {"engine.slots": str(slots)}
        slots //= 2


def _moments(now: Setting) -> _Step:
    if now.config.optimizer.moments == "float32":
        new = _with(now, optimizer=replace(now.config.optimizer, moments="bfloat16"))
        yield new, {"moments": "a bfloat16 first moment"}, {"optimizer.moments": "bfloat16"}


def _nf4(now: Setting) -> _Step:
    """The frozen base in 4 bits, where there is one."""
    lora, model = now.config.lora, now.model
    inputs = (model.hidden_size, model.num_heads * model.head_dim, model.intermediate_size)
    if lora and lora.quantize == "none" and not any(size % NF4_BLOCK for size in inputs):
        new = _with(now, lora=replace(lora, quantize="nf4"))
        yield new, {"nf4": "the base in nf4"}, {"lora.quantize": "nf4"}


def _lora(now: Setting, *, reference_in_file: bool) -> _Step:
    """Adapters in place of all parameters, on the one chip that was asked for; then with the base in 4 bits."""
    if now.config.lora or now.devices > 1:
        return
    words, options = {"lora": f"LoRA of rank {_RANK}"}, dict[str, str | None]({"lora.rank": str(_RANK)})
    changed: dict[str, Any] = {"lora": LoraConfig(rank=_RANK)}
    if isinstance(now.config, RLConfig) and now.config.reference_on_host:  # the reference is the base
        changed["reference_on_host"] = False
        words["reference"], options["reference-on-host"] = "", None
        if reference_in_file:  # no option takes it out
            words["reference"] = "reference_on_host left out of the config file"
    new = _with(now, **changed)
    yield new, words, options
    yield from _nf4(new)


def _accumulation(now: Setting) -> _Step:
    config = now.config
    if isinstance(config, SFTConfig):
        most = most_accumulation(now)
        for parts in range(config.accumulation + 1, most + 1):
            if most % parts == 0:
                new = _with(now, accumulation=parts)
                yield new, {"accumulation": f"accumulation {parts}"}, {"accumulation": str(parts)}


def _tensor(now: Setting) -> _Step:
    mesh = dict(now.mesh)
    while mesh["fsdp"] % 2 == 0:
        mesh = {**mesh, "fsdp": mesh["fsdp"] // 2, "tensor": 2 * mesh["tensor"]}
        if possible(replace(now, mesh=mesh)):
            yield _on_mesh(now, mesh)


def _chips(now: Setting) -> _Step:
    mesh = dict(now.mesh)
    while 2 * replace(now, mesh=mesh).devices <= _MOST_CHIPS:
        mesh = {**mesh, "fsdp": 2 * mesh["fsdp"]}
        if possible(replace(now, mesh=mesh)):
            yield _on_mesh(now, mesh)


def _on_mesh(now: Setting, mesh: dict[str, int]) -> tuple[Setting, dict[str, str], dict[str, str | None]]:
    new = replace(now, mesh=mesh)
    texts, options = {"mesh": f"mesh {new.mesh_text}"}, dict[str, str | None]({"mesh": new.mesh_text})
    if new.devices != now.devices:
        texts = {"mesh": f"{new.devices} chips (mesh {new.mesh_text})"}
    if isinstance(new.config, SFTConfig):
        parts = most_accumulation(new)
        new = _with(new, accumulation=parts)
        texts["accumulation"] = f"accumulation {parts}"
        options["accumulation"] = str(parts)
    return new, texts, options


def most_accumulation(setting: Setting) -> int:
    """The microbatches that leave each device one row of every microbatch."""
    config = setting.config
    return max(1, config.rows // setting.batch_shards) if isinstance(config, SFTConfig) else 1


def possible(setting: Setting) -> bool:
    """Whether model, rows and slots divide by the mesh."""
    config, model, tensor = setting.config, setting.model, setting.mesh["tensor"]
    sizes = (model.num_kv_heads, model.intermediate_size, model.vocab_size)
    if any(size % tensor for size in sizes) or model.hidden_size % setting.mesh["fsdp"]:
        return False
    if isinstance(config, SFTConfig):
        return config.rows % setting.batch_shards == 0
    return config.engine.name != "native" or config.engine.slots % setting.batch_shards == 0
