"""The map between the Decoder's parameters and Hugging Face tensors, for loading, export and weight sync alike.

A row gives a parameter's path in the Decoder, its tensor's name, whether the two are transposed (Hugging Face stores linear
weights as [outputs, inputs]) and its logical axes. A stacked parameter holds one tensor per layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from dcore_jax.mesh import check_divisible, sharding
from dcore_jax.models import Decoder, ModelConfig


@dataclass(frozen=True)
class Parameter:
    """One row of the map."""

    path: tuple[str, ...]  # in nnx.state(decoder)
    tensor: str  # Hugging Face name; {layer} in it for stacked parameters
    transposed: bool
    logical: tuple[str | None, ...]  # for each axis of our array a key of mesh.LOGICAL_TO_MESH

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.tensor

    def tensor_names(self, num_layers: int) -> list[str]:
        """The Hugging Face names of this parameter, one per layer if stacked."""
        return [self.tensor.format(layer=i) for i in range(num_layers)] if self.stacked else [self.tensor]


LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def parameters(config: ModelConfig) -> list[Parameter]:
    """Every parameter of the decoder, in Hugging Face's order."""
    rows = [Parameter(("embedding",), EMBEDDING, False, ("vocab", "embed"))]

    def linear(path: tuple[str, ...], tensor: str, inputs: str, outputs: str, bias: bool) -> None:
        tensor = "model.layers.{layer}." + tensor
        rows.append(
            Parameter(("layers", *path, "kernel"), tensor + ".weight", True, ("layers", inputs, outputs))
        )
        if bias:
            rows.append(Parameter(("layers", *path, "bias"), tensor + ".bias", False, ("layers", outputs)))

    def norm(path: tuple[str, ...], tensor: str) -> None:
        rows.append(
            Parameter(
                ("layers", *path, "scale"), f"model.layers.{{layer}}.{tensor}.weight", False, ("layers", None)
            )
        )

    norm(("attention_norm",), "input_layernorm")
    for name in ("q", "k", "v"):
        linear(("attention", name), f"self_attn.{name}_proj", "embed", "heads", config.qkv_bias)
    linear(("attention", "o"), "self_attn.o_proj", "heads", "embed", config.output_bias)
    if config.qk_norm:
        norm(("attention", "q_norm"), "self_attn.q_norm")
        norm(("attention", "k_norm"), "self_attn.k_norm")
    norm(("mlp_norm",), "post_attention_layernorm")
    for name in ("gate", "up"):
        linear(("mlp", name), f"mlp.{name}_proj", "embed", "mlp", config.mlp_bias)
    linear(("mlp", "down"), "mlp.down_proj", "mlp", "embed", config.mlp_bias)
    rows.append(Parameter(("norm", "scale"), "model.norm.weight", False, (None,)))
    if not config.tie_word_embeddings:
        rows.append(Parameter(("head",), LM_HEAD, True, ("embed", "vocab")))
    return rows


def shardings(config: ModelConfig, mesh: Mesh) -> nnx.State:
    """A NamedSharding for every parameter, shaped like `nnx.state(decoder)`.

    Raises:
      UserError: an axis of the mesh does not divide the dimension it splits.
    """
    check_divisible(
        mesh.shape,
        {
            "embed:hidden_size": config.hidden_size,
            "heads:num_attention_heads": config.num_heads,
            "heads:num_key_value_heads": config.num_kv_heads,
            "mlp:intermediate_size": config.intermediate_size,
            "vocab:vocab_size": config.vocab_size,
        },
    )
    return state_from_rows({row.path: sharding(mesh, row.logical) for row in parameters(config)})


def state_from_rows(values: Mapping[tuple[str, ...], Any]) -> nnx.State:
    """An nnx.State from values by path."""
    flat: Any = {path: nnx.Param(value) for path, value in values.items()}
    return nnx.State.from_flat_path(flat)


def parameter_values(decoder: Decoder) -> dict[Any, Any]:
    """The decoder's parameters (arrays, or shapes of an abstract decoder) by path."""
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(decoder, nnx.Param))}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, in order."""
    return sorted(folder.glob("*.safetensors"))
