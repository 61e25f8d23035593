"""The embedded default: a Qwen3 small enough for a laptop, its tokenizer, and what it is taught of the tool world."""

from typing import TYPE_CHECKING

from dcore_jax.lazy import lazy_names

if TYPE_CHECKING:
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
__getattr__ = lazy_names(
    __name__,
    {
        "NANO": "config",
        "NanoConfig": "config",
        "build_tokenizer": "tokenizer",
        "embedded_data": "embedded",
        "embedded_model": "embedded",
        "nano_config": "config",
        "nano_fields": "config",
    },
)
