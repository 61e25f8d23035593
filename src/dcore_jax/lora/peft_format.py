"""Adapters in the format of Hugging Face's `peft`: adapter_config.json and adapter_model.safetensors."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dcore_jax.atomic import atomic_folder
from dcore_jax.errors import UserError
from dcore_jax.lora.config import LoraConfig
from dcore_jax.lora.init import layer_kernels
from dcore_jax.models import ModelConfig

_PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapter_tensors(
    config: ModelConfig, adapters: nnx.State
) -> dict[str, Float[np.ndarray, "outputs inputs"]]:
    """A and B of every matrix on the host, by the names that peft gives them: lora_A [R, I], lora_B [O, R]."""
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(adapters)}
    found: dict[str, np.ndarray] = {}
    for row in layer_kernels(config):
        for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
            value = leaves.get((*row.path[:-1], "adapter", ours))
            if value is None:
                continue
            whole = _on_host(value)
            for layer in range(config.num_layers):
                module = row.tensor.format(layer=layer).removesuffix(".weight")
                found[f"{_PREFIX}{module}.{theirs}.weight"] = np.ascontiguousarray(whole[layer].T)
    return found


def _on_host(value: jax.Array) -> np.ndarray:
    if not value.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    return np.asarray(value)


def adapter_fields(lora: LoraConfig, base: str) -> dict[str, Any]:
    """The fields of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }


def export_adapter(
    config: ModelConfig, adapters: nnx.State, lora: LoraConfig, out: str | Path, *, base: str
) -> Path:
    """Writes a folder that `peft.PeftModel.from_pretrained(model, folder)` loads; atomically.

    Args:
      adapters: their state, as `partition` gives it.
      out: the folder; must be missing or empty.
      base: the name or folder of the model that the adapters belong to.

    Raises:
      UserError: `out` exists and is not empty, a number is not finite, or a file cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; choose another --output or remove it yourself")
    tensors = adapter_tensors(config, adapters)
    broken = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if broken:
        raise UserError(
            f"{out}: not written: NaN or infinite values in {broken[0]} and {len(broken) - 1} more"
        )
    if jax.process_index() == 0:
        try:
            with atomic_folder(out) as folder:
                save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
                (folder / CONFIG).write_text(json.dumps(adapter_fields(lora, base), indent=2) + "\n")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{out}: could not be written ({error}); nothing was left there") from None
    return out
