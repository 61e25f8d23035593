"""The embedded default: a small random Qwen3 and sample data of the tool world, written where a run can find them again."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcore_jax.config import NANO
from dcore_jax.models import Compute, model_config_from_hf
from dcore_jax.sft.config import NanoConfig
from dcore_jax.toolworld import generate_tasks, to_record
from dcore_jax.toolworld.lessons import decomposition_record, lazy_record, subtask_record
from dcore_jax.toolworld.nano import build_tokenizer, nano_config
from dcore_jax.toolworld.records import write_records
from dcore_jax.weights import export_decoder, new_decoder

TOOLWORLD = "toolworld"


def embedded_model(folder: Path, config: NanoConfig, seed: int) -> Path:
    """A Hugging Face folder with a random Qwen3 of nano size, its tokenizer and chat template; made once."""
    out = folder / f"{NANO}-{config.hidden}x{config.layers}-seed{seed}"
    if (out / "config.json").exists():
        return out
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        fields = nano_config(build_tokenizer(partial / "source"), hidden=config.hidden, layers=config.layers)
        (partial / "source" / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        decoder = new_decoder(model_config_from_hf(fields), compute=Compute(), seed=seed)
        export_decoder(decoder, partial / "model")
        for path in (partial / "source").iterdir():
            shutil.copyfile(path, partial / "model" / path.name)
        os.replace(partial / "model", out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def embedded_data(folder: Path, config: NanoConfig, seed: int) -> Path:
    """A JSONL file of chat records drawn from the tool world's training split; made once."""
    kinds = "".join(f"-{kind}" for kind in config.kinds)
    lessons = f"-lessons{config.lessons}" if config.lessons else ""
    lazy = f"-lazy{config.lazy:g}" if config.lazy else ""
    out = folder / f"{TOOLWORLD}-{config.tasks}-upto{config.subtasks}{kinds}{lazy}{lessons}-seed{seed}.jsonl"
    if not out.exists():
        write_records(out, _records(config, seed))
    return out


def _records(config: NanoConfig, seed: int) -> Iterator[dict[str, Any]]:
    sizes, kinds = (1, config.subtasks), config.kinds or None
    for number, task in enumerate(
        generate_tasks(config.tasks, seed=seed, split="train", kinds=kinds, subtasks=sizes)
    ):
        lazy = int((number + 1) * config.lazy) > int(number * config.lazy)
        yield lazy_record(task) if lazy else to_record(task)
    several = ("sequential", "parallel")
    for number, task in enumerate(
        generate_tasks(config.lessons, seed=seed, split="train", kinds=several, subtasks=(2, 5))
    ):
        yield decomposition_record(task)
        if number % 2 == 0:  # several turns each, and easier to learn
            yield subtask_record(task)
    # A request of one call has a list of one subtask.
    alone = generate_tasks(
        config.lessons // 4, seed=seed, split="train", kinds=["single"], subtasks=(1, 1), start=config.tasks
    )
    for task in alone:
        yield decomposition_record(task)
