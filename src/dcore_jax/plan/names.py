"""Devices, models and presets by the names that a user gives them."""

import os
from pathlib import Path
from typing import Any

from dcore_jax import aot
from dcore_jax.aot import DEVICES, Device
from dcore_jax.config import config_names
from dcore_jax.errors import UserError
from dcore_jax.models import ModelConfig, model_config_from_hf
from dcore_jax.nano.config import NANO, nano_fields
from dcore_jax.plan.programs import Recipe

__all__ = ["DEVICES", "device_named", "model_named", "planned_presets"]

_NANO_VOCABULARY = 1088  # 1,029 entries, filled up to a multiple of 64


def device_named(name: str) -> Device:
    """A device of aot.DEVICES, or `cpu`: this machine, whose rates nobody states."""
    if name == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Device("cpu", "cpu", "CPU of this machine", memory, 0.0, 0.0, 0.0, "the operating system")
    if name not in DEVICES:
        raise UserError(f"device {name!r} is unknown; choose one of {', '.join(DEVICES)}, cpu")
    return DEVICES[name]


def model_named(config: Recipe) -> ModelConfig:
    """The shapes of a recipe's model: a folder's config.json, a released size (`8b`, `qwen3-8b`, a hub id), or `nano`."""
    if config.model == NANO:
        nano: Any = getattr(config, "nano", None)
        sizes = {"hidden": nano.hidden, "layers": nano.layers} if nano else {"hidden": 128, "layers": 4}
        return model_config_from_hf(nano_fields(_NANO_VOCABULARY, **sizes))
    if Path(config.model).is_dir() and not (Path(config.model) / "config.json").is_file():
        raise UserError(
            f"{config.model}: holds no config.json; --model wants a Hugging Face folder or a size such as 8b"
        )
    return aot.model_of(config.model)


def planned_presets() -> list[str]:
    """The shipped configs of SFT and RL for released models, without their variants of the same shapes."""
    names = [name for name in config_names() if name.startswith(("sft_", "rl_"))]
    return [name for name in names if not name.endswith(("_nano", "_release", "_rsft_qwen3_4b"))]
