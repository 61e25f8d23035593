"""The architecture of a decoder, read entirely from a Hugging Face `config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's rotary frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights that determines a dense decoder's output."""

    model_type: str  # qwen3 | qwen2 | llama
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # not always hidden_size / num_heads
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tie_word_embeddings: bool
    qk_norm: bool  # RMSNorm on every query and key head, before the rotation (Qwen3)
    qkv_bias: bool
    output_bias: bool  # bias of the attention's output projection
    mlp_bias: bool
    max_position_embeddings: int
    initializer_range: float = 0.02

    @property
    def num_parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        return self.num_matmul_parameters + self._vector_parameters + self._lookup_only_parameters

    @property
    def num_matmul_parameters(self) -> int:
        """Number of weights that every token is multiplied with: layers and output head, not the embedding lookup."""
        query = self.num_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * self.num_kv_heads * self.head_dim)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    @property
    def _vector_parameters(self) -> int:
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        per_layer = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        per_layer += (query + 2 * key) * self.qkv_bias + self.hidden_size * self.output_bias
        per_layer += (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        return self.num_layers * per_layer + self.hidden_size

    @property
    def _lookup_only_parameters(self) -> int:
        return 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size


# What is fixed by the architecture, not by fields of config.json. head_dim: the default of a missing field, else hidden / heads.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {"class": "Qwen3ForCausalLM", "qk_norm": True, "head_dim": 128},
    "qwen2": {"class": "Qwen2ForCausalLM", "qk_norm": False},
    "llama": {"class": "LlamaForCausalLM", "qk_norm": False},
}
# Fields that change the result, with the one value that this decoder supports.
_ONLY_SUPPORTED_VALUE: dict[str, Any] = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "pretraining_tp": 1,
    "quantization_config": None,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
}
_READ = {
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters", "tie_word_embeddings", "attention_bias", "max_position_embeddings",
    "initializer_range", "layer_types",
}  # fmt: skip
# Fields about storage, generation or loading, which do not change what the network computes.
_NO_EFFECT = {
    "_name_or_path", "name_or_path", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "decoder_start_token_id", "dtype", "torch_dtype", "transformers_version", "use_cache", "max_window_layers",
    "sliding_window", "return_dict", "output_attentions", "output_hidden_states", "torchscript", "use_bfloat16",
    "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "num_labels", "finetuning_task", "task_specific_params",
    "tokenizer_class", "prefix", "pruned_heads", "tf_legacy_loss", "tie_encoder_decoder", "bad_words_ids",
    "cross_attention_hidden_size", "unsloth_fixed", "unsloth_version", "model_name", "embedding_size", "rope_interleaved",
}  # fmt: skip


def read_model_config(source: str | Path) -> ModelConfig:
    """Reads `config.json` of a Hugging Face folder, in the spelling of transformers 4 or 5.

    Raises:
      UserError: the file is missing or no JSON, the architecture is unknown, or a field would change the result in a
        way this decoder does not support; the message names the field.
    """
    path = Path(source) / "config.json"
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; --model wants a Hugging Face folder or hub id") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    try:
        return model_config_from_hf(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def model_config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a `config.json`'s fields; raises UserError as `read_model_config` does."""
    model_type = fields.get("model_type")
    if model_type not in _ARCHITECTURES:
        raise UserError(f"model_type {model_type!r} is not supported; supported: {', '.join(_ARCHITECTURES)}")
    kind = _ARCHITECTURES[model_type]
    for name in fields.get("architectures") or [kind["class"]]:
        if name != kind["class"]:
            raise UserError(
                f"architectures {name!r} is not supported for {model_type}; supported: {kind['class']}"
            )
    _refuse_unsupported(fields, _READ | {"mlp_bias"} if model_type == "llama" else _READ)

    def read(name: str, default: Any = None) -> Any:
        value = fields.get(name)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"field {name!r} is missing")
        return value

    heads, hidden = read("num_attention_heads"), read("hidden_size")
    bias = bool(fields.get("attention_bias", False))
    theta, scaling = _read_rope(fields)
    config = ModelConfig(
        model_type=model_type,
        vocab_size=read("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read("intermediate_size"),
        num_layers=read("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=read("num_key_value_heads", heads),
        head_dim=read("head_dim", kind.get("head_dim", hidden // heads)),
        rms_norm_eps=read("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qk_norm=kind["qk_norm"],
        # Qwen2 always has biases on q, k and v and never on o; the others have all four or none.
        qkv_bias=True if model_type == "qwen2" else bias,
        output_bias=False if model_type == "qwen2" else bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
        max_position_embeddings=read("max_position_embeddings", 32768),
        initializer_range=read("initializer_range", 0.02),
    )
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {config.num_kv_heads}"
        )
    return config


def _refuse_unsupported(fields: Mapping[str, Any], known: set[str]) -> None:
    for name, value in fields.items():
        if name in _ONLY_SUPPORTED_VALUE:
            supported = _ONLY_SUPPORTED_VALUE[name]
            if value is not None and value != supported:
                raise UserError(
                    f"field {name}={value!r} changes the result and is not supported (only {supported!r})"
                )
        elif name not in known and name not in _NO_EFFECT and value not in (None, False, [], {}):
            raise UserError(
                f"field {name}={value!r} is unknown and might change the result; remove it if it does not"
            )
    for kind in fields.get("layer_types") or ():
        if kind != "full_attention":
            raise UserError(
                f"field layer_types holds {kind!r}, which is not supported (only 'full_attention')"
            )


def _read_rope(fields: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    # transformers 5 writes rope_parameters; released checkpoints have rope_theta and rope_scaling side by side.
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    theta = rope.pop("rope_theta", None) or fields.get("rope_theta")
    if theta is None:
        raise UserError("field rope_theta is missing (neither rope_theta nor rope_parameters.rope_theta)")
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            "field rope_parameters.partial_rotary_factor changes the result and is not supported (only 1.0)"
        )
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(
            f"rope type {kind!r} changes the result and is not supported (only 'default' and 'llama3')"
        )
    try:
        scaling = Llama3Scaling(
            factor=float(rope.pop("factor")),
            low_freq_factor=float(rope.pop("low_freq_factor")),
            high_freq_factor=float(rope.pop("high_freq_factor")),
            original_max_position_embeddings=int(rope.pop("original_max_position_embeddings")),
        )
    except KeyError as error:
        raise UserError(f"rope type 'llama3' needs the field {error}") from None
    if rope:
        raise UserError(f"rope field {next(iter(rope))!r} is unknown and might change the result")
    return float(theta), scaling
