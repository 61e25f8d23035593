"""The embedded default: a small random Qwen3 and sample data of the tool world, written where a run can find them again."""

import json
import os
import shutil
from pathlib import Path

from dcore_jax.models import Compute, model_config_from_hf
from dcore_jax.sft.config import NanoConfig
from dcore_jax.toolworld import generate_tasks, write_jsonl
from dcore_jax.toolworld.nano import build_tokenizer, nano_config
from dcore_jax.weights import export_decoder, new_decoder

NANO = "nano"
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
    out = folder / f"{TOOLWORLD}-{config.tasks}-upto{config.subtasks}-seed{seed}.jsonl"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
        write_jsonl(
            partial, generate_tasks(config.tasks, seed=seed, split="train", subtasks=(1, config.subtasks))
        )
        os.replace(partial, out)
    return out
