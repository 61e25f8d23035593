"""The architecture of a decoder, read entirely from a Hugging Face `config.json`.

A field that transformers' class of the architecture does not define changes nothing there: it is said once and ignored. A defined
field is read, or has no effect on what the network computes, or is refused by name unless it holds the one value supported.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError
from dcore_jax.models.fields import decimal_field, flag_field, shown, size_field, whole_number
from dcore_jax.models.rope_scaling import RopeScaling, read_rope
from dcore_jax.progress import log


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
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    qk_norm: bool  # RMSNorm on every query and key head, before the rotation (Qwen3)
    qkv_bias: bool
    output_bias: bool  # bias of the attention's output projection
    mlp_bias: bool
    max_position_embeddings: int
    initializer_range: float = 0.02

    @property
    def context_length(self) -> int:
        """Most tokens of a row: max_position_embeddings, or what the rope scaling reaches where that is more."""
        scaled = self.rope_scaling.context_length if self.rope_scaling is not None else None
        return max(self.max_position_embeddings, scaled or 0)

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


@dataclass(frozen=True)
class _Architecture:
    """What is fixed by an architecture rather than by fields of config.json."""

    class_name: str
    qk_norm: bool
    head_dim: int | None  # of a config without the field; None: hidden_size / num_attention_heads
    key_value_heads: int | None  # the same; None: num_attention_heads
    positions: int  # the same, of max_position_embeddings
    defined: frozenset[str]  # fields of transformers' class beside _DEFINED_BY_ALL


_QWEN = {"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"}
_ARCHITECTURES = {
    "qwen3": _Architecture(
        "Qwen3ForCausalLM", True, 128, 32, 32768, frozenset(_QWEN | {"attention_bias", "head_dim"})
    ),
    "qwen2": _Architecture("Qwen2ForCausalLM", False, None, 32, 32768, frozenset(_QWEN)),
    "llama": _Architecture(
        "LlamaForCausalLM", False, None, None, 2048,
        frozenset({"attention_bias", "head_dim", "mlp_bias", "pretraining_tp"}),
    ),
}  # fmt: skip
# Fields about storage, generation, classification or logging: no value of theirs changes what the network computes.
# sliding_window and max_window_layers act only where use_sliding_window is true, which is refused.
_NO_EFFECT = {
    "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "label2id", "max_window_layers",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "sliding_window", "transformers_version", "use_cache",
}  # fmt: skip
# Every field that all three classes of transformers define.
_DEFINED_BY_ALL = (_NO_EFFECT - _QWEN) | {
    "architectures", "attention_dropout", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "is_encoder_decoder", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "vocab_size",
}  # fmt: skip
DEFINED_FIELDS = {name: _DEFINED_BY_ALL | kind.defined for name, kind in _ARCHITECTURES.items()}
# Fields that transformers reads although no class defines them: older spellings, and what changes a model from outside.
_READ_TOO = {
    "model_type", "rope_theta", "rope_scaling", "partial_rotary_factor", "quantization_config", "per_layer_config",
    "original_max_position_embeddings", "head_dim",
}  # fmt: skip
# What transformers itself writes beside them; not worth a line.
_BOOKKEEPING = {"_name_or_path", "name_or_path", "torch_dtype", "num_labels", "output_attentions"}
# Fields that change the result, with the values that leave it as this decoder computes it.
_ONLY_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "attention_dropout": (0.0, 0, None),
    "partial_rotary_factor": (1.0, 1, None),
    "pretraining_tp": (1, None),
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
    "per_layer_config": (None,),
}


def read_model_config(source: str | Path) -> ModelConfig:
    """Reads `config.json` of a Hugging Face folder, in the spelling of transformers 4 or 5.

    Raises:
      UserError: the file is missing or no JSON object, the architecture is unknown, a number is missing or none, or a field
        would change the result in a way this decoder does not support; the message names the field.
    """
    path = Path(source) / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; --model wants a Hugging Face folder or hub id") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds {shown(fields)}, not a JSON object of fields")
    try:
        config = model_config_from_hf(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if ignored := ignored_fields(fields):
        _say_ignored(str(path), config.model_type, tuple(ignored))
    return config


def ignored_fields(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a supported `config.json` that its architecture does not define, sorted."""
    known = DEFINED_FIELDS[fields["model_type"]] | _READ_TOO | _BOOKKEEPING
    return sorted(set(fields) - known)


@functools.cache  # once a process, however often the file is read
def _say_ignored(path: str, model_type: str, names: tuple[str, ...]) -> None:
    log(f"{path}: ignored, since transformers' {model_type} does not define them: {', '.join(names)}")


def model_config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a `config.json`'s fields; raises UserError as `read_model_config` does."""
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        raise UserError(
            f"model_type {shown(model_type)} is not supported; supported: {', '.join(_ARCHITECTURES)}"
        )
    kind = _ARCHITECTURES[model_type]
    _check_supported(fields, model_type, kind)
    heads, hidden = size_field(fields, "num_attention_heads"), size_field(fields, "hidden_size")
    positions = whole_number("max_position_embeddings", fields.get("max_position_embeddings", kind.positions))
    theta, scaling = read_rope(fields, positions)
    head_dim, key_value_heads = fields.get("head_dim"), fields.get("num_key_value_heads")
    if "head_dim" not in fields or (head_dim is None and model_type == "llama"):
        head_dim = kind.head_dim or hidden // heads
    if "num_key_value_heads" not in fields:
        key_value_heads = kind.key_value_heads
    biased = flag_field(fields, "attention_bias") if model_type != "qwen2" else False
    config = ModelConfig(
        model_type=model_type,
        vocab_size=size_field(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=size_field(fields, "intermediate_size"),
        num_layers=size_field(fields, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads
        if key_value_heads is None
        else whole_number("num_key_value_heads", key_value_heads),
        head_dim=whole_number("head_dim", head_dim),
        rms_norm_eps=decimal_field(fields, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=flag_field(fields, "tie_word_embeddings"),
        qk_norm=kind.qk_norm,
        # Qwen2 always has biases on q, k and v and never on o; the others have all four or none.
        qkv_bias=model_type == "qwen2" or biased,
        output_bias=biased,
        mlp_bias=flag_field(fields, "mlp_bias") if model_type == "llama" else False,
        max_position_embeddings=positions,
        initializer_range=decimal_field(fields, "initializer_range", 0.02, zero=True),
    )
    _check_sizes(config, fields)
    return config


def _check_supported(fields: Mapping[str, Any], model_type: str, kind: _Architecture) -> None:
    """Raises UserError for a field that would change the result, whatever its type."""
    classes = fields.get("architectures")
    if classes is not None and not isinstance(classes, list):
        raise UserError(f"field architectures={shown(classes)} is not a list of class names")
    for name in classes or ():
        if name != kind.class_name:
            raise UserError(
                f"architectures {shown(name)} is not supported for {model_type}; supported: {kind.class_name}"
            )
    for name, supported in _ONLY_SUPPORTED.items():
        if name not in fields or name not in DEFINED_FIELDS[model_type] | _READ_TOO:
            continue
        value = fields[name]
        if not any(type(value) is type(x) and value == x for x in supported):
            raise UserError(
                f"field {name}={shown(value)} changes the result and is not supported (only {supported[0]!r})"
            )
    layers = fields.get("layer_types")
    if layers is not None and "layer_types" in kind.defined:
        if not isinstance(layers, list):
            raise UserError(f"field layer_types={shown(layers)} is not a list of layer types")
        for layer in layers:
            if layer != "full_attention":
                raise UserError(
                    f"field layer_types holds {shown(layer)}, which is not supported (only 'full_attention')"
                )


def _check_sizes(config: ModelConfig, fields: Mapping[str, Any]) -> None:
    """Raises UserError where numbers that are right alone do not fit together."""
    heads, groups, layers = config.num_heads, config.num_kv_heads, fields.get("layer_types")
    if heads % groups:
        raise UserError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
    if config.model_type == "llama" and config.hidden_size % heads:
        raise UserError(f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}")
    if config.head_dim % 2:
        raise UserError(f"head_dim {config.head_dim} is odd; rotary positions turn channels in pairs")
    if layers is not None and config.model_type != "llama" and len(layers) != config.num_layers:
        raise UserError(
            f"field layer_types has {len(layers)} entries, num_hidden_layers is {config.num_layers}"
        )
