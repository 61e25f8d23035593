"""The nano model's size, and its `config.json`."""

from dataclasses import dataclass
from typing import Any

from dcore_jax.errors import UserError

NANO = "nano"  # the name of the embedded model, in place of a folder or hub id
NANO_BASE = "nano-base"  # the trained one that travels with the package (base/README.md)
NANO_POSITIONS = 2048  # its max_position_embeddings


@dataclass(frozen=True)
class NanoConfig:
    """The embedded model, where --model is `nano`."""

    hidden: int = 128
    """Model width, a multiple of 64."""
    layers: int = 2
    """Decoder layers."""


def nano_config(tokenizer: Any, *, hidden: int = 128, layers: int = 2) -> dict[str, Any]:
    """The `config.json` of a Qwen3 of that size: 0.53 M parameters by default, embeddings tied.

    The vocabulary is the tokenizer's, rounded up to a multiple of 64. Raises UserError unless `hidden` is a
    multiple of 64 (heads of 32, in pairs that share a key and value head).
    """
    from dcore_jax.nano.tokenizer import END, PAD  # with transformers, which reading a config does not need

    fields = nano_fields(-(-len(tokenizer) // 64) * 64, hidden=hidden, layers=layers)
    ends = {"eos_token_id": END, "pad_token_id": PAD}
    return fields | {name: tokenizer.convert_tokens_to_ids(token) for name, token in ends.items()}


def nano_fields(vocab_size: int, *, hidden: int, layers: int) -> dict[str, Any]:
    """The part of `nano_config` that needs no tokenizer."""
    head_dim = 32
    if hidden <= 0 or hidden % (2 * head_dim) or layers < 1:
        raise UserError(
            f"hidden={hidden}, layers={layers}: hidden must be a multiple of 64 and layers at least 1"
        )
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // head_dim,
        "num_key_value_heads": hidden // head_dim // 2,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": NANO_POSITIONS,
        "sliding_window": None,
        "use_sliding_window": False,
        # 1 / sqrt(hidden) rather than the 0.02 of wide models, from which a narrow one was slow to learn to copy.
        "initializer_range": hidden**-0.5,
        "use_cache": True,
        "torch_dtype": "float32",
        "bos_token_id": None,
    }
