"""A decoder with adapters: its shapes, where its arrays lie, the frozen base as it is loaded, new adapters.

In `nnx.state(decoder)` an adapter is `(..., "q", "adapter", "a" | "b")` beside the kernel that it updates, stacked over the
layers as the kernel is. `partition` separates what is trained from what is frozen; `nnx.merge(graph, trained, frozen)` is the
model again.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dcore_jax.lora.config import LoraConfig
from dcore_jax.lora.quantize import codes_shape, nf4_kernel
from dcore_jax.mesh import fitting, sharding
from dcore_jax.models import Compute, Decoder, ModelConfig, abstract_decoder
from dcore_jax.models.adapters import Adapter, NF4Kernel
from dcore_jax.weights import Parameter, load_parameters, parameters, state_from_rows

LeafPath = tuple[str, ...]


def layer_kernels(config: ModelConfig) -> list[Parameter]:
    """The rows of the name map that are matrices of layers."""
    return [row for row in parameters(config) if row.path[0] == "layers" and row.path[-1] == "kernel"]


def target_of(row: Parameter) -> str:
    """A row's name among LoraConfig.targets, as `q_proj`."""
    return row.tensor.split(".")[-2]


def adapted_decoder(config: ModelConfig, compute: Compute, lora: LoraConfig) -> Decoder:
    """A decoder of shapes with adapters on the targets: frozen matrices in the compute dtype or nf4, adapters in float32.

    A frozen matrix is only ever read in the compute dtype, so that storing it in that dtype changes no bit of what is computed.

    Raises:
      UserError: nf4, and a matrix whose inputs are no multiple of 64.
    """
    decoder = abstract_decoder(config, compute)
    kept = {
        path: leaf.replace(jax.ShapeDtypeStruct(leaf.shape, _frozen_dtype(path, compute)))
        for path, leaf in nnx.to_flat_state(nnx.state(decoder))
    }
    nnx.update(decoder, nnx.State.from_flat_path(kept))
    for row in layer_kernels(config):
        linear: Any = decoder
        for name in row.path[:-1]:
            linear = getattr(linear, name)
        layers, inputs, outputs = linear.kernel.get_value().shape
        if target_of(row) in lora.targets:
            linear.adapter = Adapter(
                jax.ShapeDtypeStruct((layers, inputs, lora.rank), jnp.float32),
                jax.ShapeDtypeStruct((layers, lora.rank, outputs), jnp.float32),
                lora.scale,
            )
        if lora.quantize == "nf4":
            linear.kernel = NF4Kernel(*codes_shape((layers, inputs, outputs), target_of(row)))
    return decoder


def _frozen_dtype(path: tuple[Any, ...], compute: Compute) -> Any:
    return compute.param_dtype if path[-1] == "scale" else compute.dtype  # norms multiply in float32


def partition(state: nnx.State) -> tuple[nnx.State, nnx.State]:
    """The adapters of a decoder's state, and the frozen rest."""
    flat = nnx.to_flat_state(state)
    trained = {path: leaf for path, leaf in flat if "adapter" in path}
    frozen = {path: leaf for path, leaf in flat if "adapter" not in path}
    return nnx.State.from_flat_path(trained), nnx.State.from_flat_path(frozen)


def count(state: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(state))


def lora_shardings(config: ModelConfig, mesh: Mesh, state: nnx.State) -> nnx.State:
    """A NamedSharding for every array of `state`, a decoder's or a part of it, with or without adapters and nf4 kernels.

    A and B are split as the kernel's inputs and outputs are, never along the rank; codes and scales as the kernel is, where the
    mesh divides the number of blocks.
    """
    logical = {row.path: row.logical for row in parameters(config)}

    def placed(path: LeafPath, shape: tuple[int, ...]) -> Any:
        axes: tuple[str | None, ...]
        kernel = (*path[:-2], "kernel")
        if path[-2:-1] == ("adapter",):
            layers, inputs, outputs = logical[kernel]
            axes = (layers, inputs, None) if path[-1] == "a" else (layers, None, outputs)
        elif path[-1] in ("codes", "absmax"):
            layers, inputs, outputs = logical[kernel]
            axes = (layers, inputs, None, outputs) if path[-1] == "codes" else (layers, inputs, outputs)
            axes = fitting(axes, shape, mesh.shape)
        else:
            axes = logical[path]
        return sharding(mesh, axes)

    return state_from_rows(
        {p: placed(p, x.shape) for p, x in ((tuple(map(str, q)), x) for q, x in nnx.to_flat_state(state))}
    )


def frozen_base(
    folder: Path,
    config: ModelConfig,
    compute: Compute,
    lora: LoraConfig,
    mesh: Mesh,
    *,
    progress: bool = False,
) -> nnx.State:
    """The frozen part of an adapted decoder from a Hugging Face folder, sharded: `partition(...)[1]` of its state.

    One parameter at a time: quantised from float32 as soon as it is loaded, so that the peak is the base and one parameter.

    Raises:
      UserError: as `weights.load_decoder`, and for nf4 a matrix whose inputs are no multiple of 64.
    """
    kernels = {row.path for row in layer_kernels(config)} if lora.quantize == "nf4" else set()
    shapes = dict(nnx.to_flat_state(nnx.state(adapted_decoder(config, compute, lora))))

    def convert(row: Parameter, value: Float[Array, "..."]) -> dict[LeafPath, Array]:
        if row.path not in kernels:
            return {row.path: value}
        codes, absmax = nf4_kernel(value, row.logical, mesh)
        return {(*row.path, "codes"): codes, (*row.path, "absmax"): absmax}

    values = load_parameters(
        folder,
        config,
        dtype_of=lambda row: jnp.float32 if row.path in kernels else shapes[row.path].dtype,
        mesh=mesh,
        convert=convert,
        progress=progress,
    )
    return state_from_rows(values)


def new_adapters(shapes: nnx.State, key: Array) -> nnx.State:
    """Adapters before the first step, for jit: A uniform in +-1/sqrt(inputs), as PEFT draws it, B zero: the model is the base."""

    def drawn(path: tuple[Any, ...], shape: Any) -> Array:
        if path[-1] == "b":
            return jnp.zeros(shape.shape, shape.dtype)
        bound = 1 / math.sqrt(shape.shape[-2])
        # A key of the path's name: the same draws whichever other targets there are, and on any mesh.
        own = jax.random.fold_in(key, zlib.crc32(".".join(map(str, path)).encode()))
        return jax.random.uniform(own, shape.shape, shape.dtype, -bound, bound)

    return nnx.State.from_flat_path(
        {path: leaf.replace(drawn(path, leaf.get_value())) for path, leaf in nnx.to_flat_state(shapes)}
    )
