"""Merging: the dense kernel that a frozen one and its adapter add up to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dcore_jax.lora.config import LoraConfig
from dcore_jax.lora.init import layer_kernels
from dcore_jax.lora.quantize import nf4_kernel
from dcore_jax.mesh import sharding
from dcore_jax.models import Decoder, ModelConfig, abstract_decoder
from dcore_jax.models.adapters import Adapter, dequantized
from dcore_jax.weights import Parameter, load_parameters, state_from_rows

Leaves = Mapping[tuple[Any, ...], Any]  # arrays by their path in nnx.state(decoder)


def adapter_scale(decoder: Decoder) -> float:
    """alpha / rank of a decoder's adapters; 0 for one without adapters."""
    scales = {module.scale for _, module in nnx.iter_modules(decoder) if isinstance(module, Adapter)}
    return scales.pop() if scales else 0.0


def merged_kernel(
    kernel: Float[Array, "*layers inputs outputs"],
    a: Float[Array, "*layers inputs rank"],
    b: Float[Array, "*layers rank outputs"],
    scale: float,
) -> Float[Array, "*layers inputs outputs"]:
    """`kernel + scale * a @ b` in float32."""
    update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return kernel.astype(jnp.float32) + scale * update


def merged_leaves(leaves: Leaves, scale: float) -> dict[tuple[Any, ...], Any]:
    """The leaves of a plain decoder that computes what one with these leaves does; pure. Merged kernels are float32.

    The leaves may be a whole decoder's or a layer's. A kernel in nf4 stays as it was rounded: the adapters were trained on that.
    """
    plain: dict[tuple[Any, ...], Any] = {}
    for path, value in leaves.items():
        if path[-1] == "codes":
            plain[path[:-1]] = dequantized(value, leaves[*path[:-1], "absmax"])
        elif "adapter" not in path and path[-1] != "absmax":
            plain[path] = value
    for path, a in leaves.items():
        if path[-2:] == ("adapter", "a"):
            kernel = (*path[:-2], "kernel")
            plain[kernel] = merged_kernel(plain[kernel], a, leaves[*path[:-1], "b"], scale)
    return plain


def merged_parameters(
    folder: Path,
    config: ModelConfig,
    adapters: nnx.State,
    lora: LoraConfig,
    mesh: Mesh,
    *,
    dtype: Any,
    progress: bool = False,
) -> nnx.State:
    """The state of a plain decoder: the folder's weights with the adapters merged, sharded, one parameter at a time.

    Args:
      dtype: of all parameters; sums are made in float32 and then cast.

    Raises:
      UserError: as `frozen_base`.
    """
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(adapters)}
    kernels = {row.path for row in layer_kernels(config)}

    def convert(row: Parameter, value: Array) -> dict[tuple[str, ...], Array]:
        if row.path not in kernels:
            return {row.path: value}
        parts: dict[tuple[str, ...], Array] = {row.path: value}
        if lora.quantize == "nf4":
            codes, absmax = nf4_kernel(value, row.logical, mesh)
            parts = {(*row.path, "codes"): codes, (*row.path, "absmax"): absmax}
        own = {path: x for path, x in leaves.items() if path[:-2] == row.path[:-1]}
        merge = jax.jit(
            lambda parts: {p: x.astype(dtype) for p, x in merged_leaves(parts, lora.scale).items()},
            out_shardings={row.path: sharding(mesh, row.logical)},
        )
        return merge({**parts, **own})

    values = load_parameters(
        folder,
        config,
        dtype_of=lambda row: jnp.float32 if row.path in kernels else dtype,
        mesh=mesh,
        convert=convert,
        progress=progress,
    )
    return state_from_rows(values)


def merged_decoder(decoder: Decoder, *, dtype: Any = jnp.float32, adapters: bool = True) -> Decoder:
    """A plain decoder with its matrices in `dtype`: adapters merged (or with `adapters=False` left out), nf4 kernels dense."""
    scale = adapter_scale(decoder)
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(decoder, nnx.Param))}
    if not adapters:
        leaves = {path: value for path, value in leaves.items() if "adapter" not in path}

    @jax.jit
    def merge(leaves: Leaves) -> dict[tuple[Any, ...], Any]:
        plain = merged_leaves(leaves, scale)
        return {p: x if p[-1] == "scale" else x.astype(dtype) for p, x in plain.items()}

    graph, _ = nnx.split(abstract_decoder(decoder.config, decoder.compute))
    return nnx.merge(graph, state_from_rows(merge(leaves)))
