"""Low-rank adapters (LoRA) on a frozen base, in the base's dtype or in 4 bits (QLoRA): config, initialisation, merge, export."""

from typing import TYPE_CHECKING

from dcore_jax.lazy import lazy_names

if TYPE_CHECKING:
    from dcore_jax.lora.config import LoraConfig, check_lora_installed
    from dcore_jax.lora.init import (
        adapted_decoder,
        count,
        frozen_base,
        lora_shardings,
        new_adapters,
        partition,
    )
    from dcore_jax.lora.merge import adapter_scale, merged_decoder, merged_leaves, merged_parameters
    from dcore_jax.lora.peft_format import adapter_tensors, export_adapter

_MODULES = {
    "config": ("LoraConfig", "check_lora_installed"),
    "init": ("adapted_decoder", "count", "frozen_base", "lora_shardings", "new_adapters", "partition"),
    "merge": ("adapter_scale", "merged_decoder", "merged_leaves", "merged_parameters"),
    "peft_format": ("adapter_tensors", "export_adapter"),
}
__all__ = [
    "LoraConfig", "adapted_decoder", "adapter_scale", "adapter_tensors", "check_lora_installed", "count", "export_adapter",
    "frozen_base", "lora_shardings", "merged_decoder", "merged_leaves", "merged_parameters", "new_adapters", "partition",
]  # fmt: skip
__getattr__ = lazy_names(__name__, {name: module for module, names in _MODULES.items() for name in names})
