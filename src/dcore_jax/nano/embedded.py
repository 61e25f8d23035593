"""The embedded model and data, written where a run finds them again: a small random Qwen3, and tool-world records."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcore_jax.atomic import atomic_folder
from dcore_jax.models import Compute, model_config_from_hf
from dcore_jax.nano.config import NANO, NanoConfig, nano_config
from dcore_jax.nano.copying import copying_records
from dcore_jax.nano.lessons import decomposition_record, lazy_record, subtask_record
from dcore_jax.nano.plans import plan_records
from dcore_jax.nano.tokenizer import build_tokenizer
from dcore_jax.toolworld import generate_tasks, to_record
from dcore_jax.toolworld.records import write_records
from dcore_jax.toolworld.spec import ToolWorldSpec, parse_spec
from dcore_jax.weights import export_decoder, new_decoder

# Of plain `toolworld`; tasks of up to three subtasks are what the nano model can learn whole.
_DEFAULTS = ToolWorldSpec(count=2000, subtasks=(1, 3))


def embedded_model(folder: Path, config: NanoConfig, seed: int) -> Path:
    """A Hugging Face folder with a random Qwen3 of nano size, its tokenizer and chat template; made once."""
    out = folder / f"{NANO}-{config.hidden}x{config.layers}-seed{seed}"
    if (out / "config.json").exists():
        return out
    with atomic_folder(out) as made:
        fields = nano_config(build_tokenizer(made / "tokenizer"), hidden=config.hidden, layers=config.layers)
        decoder = new_decoder(model_config_from_hf(fields), compute=Compute(), seed=seed)
        export_decoder(decoder, made / "model")
        (made / "tokenizer" / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        for part in ("model", "tokenizer"):
            shutil.copytree(made / part, made, dirs_exist_ok=True)
            shutil.rmtree(made / part)
    return out


def embedded_data(folder: Path, spec: str, seed: int) -> Path:
    """A JSONL file of chat records drawn from the tool world, as `toolworld:8000,kinds=single+irrelevant` says; made once.

    Args:
      spec: see `toolworld.spec.parse_spec`; `lazy`, `lessons` and `lesson_kinds` are options too.
      seed: of tasks where `spec` names none.

    Raises:
      UserError: a specification that cannot be read.
    """
    tasks = data_spec(spec, seed)
    name = re.sub(r"[^\w.=+-]+", "-", spec)
    out = folder / f"{name}{'' if 'seed=' in spec else f'-seed{seed}'}.jsonl"
    if not out.exists():
        write_records(out, _records(tasks))
    return out


def data_spec(spec: str, seed: int) -> ToolWorldSpec:
    """What a data name such as `toolworld:8000,kinds=single` asks for."""
    defaults = ToolWorldSpec(count=_DEFAULTS.count, subtasks=_DEFAULTS.subtasks, seed=seed)
    return parse_spec(spec, defaults=defaults, extra=("lazy", "lessons", "lesson_kinds", "copying", "plans"))


def _records(spec: ToolWorldSpec) -> Iterator[dict[str, Any]]:
    for number, task in enumerate(spec.tasks()):
        lazy = int((number + 1) * spec.lazy) > int(number * spec.lazy)
        yield lazy_record(task) if lazy else to_record(task)
    lessons = generate_tasks(
        spec.lessons,
        seed=spec.seed,
        split=spec.split,
        kinds=spec.lesson_kinds,
        subtasks=(2, 5),
        families=spec.families,
    )
    for number, task in enumerate(lessons):
        yield decomposition_record(task)
        if number % 2 == 0:  # several turns each, and easier to learn
            yield subtask_record(task)
    # A request of one call has a list of one subtask. Tasks that the whole ones above did not take.
    alone = generate_tasks(
        spec.lessons // 4,
        seed=spec.seed,
        split=spec.split,
        kinds=["single"],
        subtasks=(1, 1),
        families=spec.families,
        start=spec.start + spec.count,
    )
    for task in alone:
        yield decomposition_record(task)
    yield from copying_records(spec.copying, spec.seed)
    yield from plan_records(spec.plans, spec.seed)
