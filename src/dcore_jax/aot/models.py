"""Released models by their size, as shapes: what `config.json` of each says, without a download."""

from pathlib import Path

from dcore_jax.errors import UserError
from dcore_jax.models import ModelConfig, model_config_from_hf, read_model_config


def _qwen3(hidden: int, mlp: int, layers: int, heads: int, tied: bool) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": tied,
        "attention_bias": False,
    }


def _qwen25(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, tied: bool) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 151_936 if tied else 152_064,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": tied,
    }


def _llama(hidden: int, mlp: int, layers: int, heads: int, tied: bool) -> dict:
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 64 if hidden == 2048 else 128,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0 if tied else 8.0, **scaling},
        "tie_word_embeddings": tied,
    }


# As the released config.json files say.
MODELS: dict[str, dict] = {
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3(4096, 12_288, 36, 32, False),
    "qwen3-14b": _qwen3(5120, 17_408, 40, 40, False),
    "qwen3-32b": _qwen3(5120, 25_600, 64, 64, False),
    "qwen2.5-3b": _qwen25(2048, 11_008, 36, 16, 2, True),
    "qwen2.5-7b": _qwen25(3584, 18_944, 28, 28, 4, False),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, True),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, True),
    "llama-3.1-8b": _llama(4096, 14_336, 32, 32, False),
}


def model_of(name: str | Path, *, layers: int | None = None) -> ModelConfig:
    """A model's numbers by folder, size (`8B`: Qwen3's) or hub id (`Qwen/Qwen3-8B`, `meta-llama/Llama-3.2-3B-Instruct`).

    Args:
      layers: so many in place of the model's own: a program of few layers compiles faster and has the same loop.

    Raises:
      UserError: neither a folder with a config.json nor a known name.
    """
    folder = Path(name)
    if (folder / "config.json").is_file() and layers is None:
        return read_model_config(folder)
    key = str(name).lower().rpartition("/")[2]
    for ending in ("-2507", "-thinking", "-instruct", "-base"):
        key = key.removesuffix(ending)
    key = f"qwen3-{key}" if f"qwen3-{key}" in MODELS else key
    if key not in MODELS:
        raise UserError(
            f"model {str(name)!r} is no folder with a config.json and no known size; known are {', '.join(MODELS)}"
        )
    return model_config_from_hf(MODELS[key] | ({} if layers is None else {"num_hidden_layers": layers}))
