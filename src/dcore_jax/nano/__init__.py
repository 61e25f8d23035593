"""The embedded default: a Qwen3 small enough for a laptop, its tokenizer, and what it is taught of the tool world."""

from dcore_jax.nano.config import NANO, NanoConfig, nano_config, nano_fields
from dcore_jax.nano.embedded import embedded_data, embedded_model
from dcore_jax.nano.tokenizer import build_tokenizer

__all__ = [
    "NANO",
    "NanoConfig",
    "build_tokenizer",
    "embedded_data",
    "embedded_model",
    "nano_config",
    "nano_fields",
]
