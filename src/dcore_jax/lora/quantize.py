"""Quantisation of frozen kernels to NF4 by qwix, in the layout that `models.adapters.NF4Kernel` computes with.

What of qwix 0.1.8 is used, and why not its LoRA provider, is in docs/lora.md, "Why not qwix's provider".
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from dcore_jax.errors import UserError
from dcore_jax.mesh import fitting, sharding, spec
from dcore_jax.models.adapters import NF4_BLOCK, packed


def codes_shape(shape: tuple[int, int, int], name: str) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of codes and scales of stacked kernels [L, I, O].

    Raises:
      UserError: the inputs are no multiple of 64.
    """
    layers, inputs, outputs = shape
    if inputs % NF4_BLOCK:
        raise UserError(
            f"nf4 stores blocks of {NF4_BLOCK} inputs, and {name} has {inputs}; leave --lora.quantize at none"
        )
    blocks = inputs // NF4_BLOCK
    return (
        jax.ShapeDtypeStruct((layers, blocks, NF4_BLOCK // 2, outputs), jnp.uint8),
        jax.ShapeDtypeStruct((layers, blocks, outputs), jnp.float32),
    )


def nf4_codes(
    kernel: Float[Array, "inputs outputs"],
) -> tuple[UInt8[Array, "inputs outputs"], Float[Array, "blocks outputs"]]:
    """The nearest level of each weight, 0 to 15, relative to the largest magnitude of its block of 64 inputs; by qwix.

    A block lies along the inputs: in Hugging Face's orientation [outputs, inputs] it is 64 numbers in a row, as bitsandbytes
    divides a matrix. Needs qwix, see `config.check_lora_installed`.

    Source:
      QLoRA (2305.14314), section 3 and appendix E, without double quantisation.
    """
    import qwix  # an extra

    found = qwix.quantize(
        kernel.astype(jnp.float32),
        "nf4",
        tiled_axes={0: NF4_BLOCK},
        channelwise_axes=(1,),
        calibration_method="absmax",
    )
    return found.qvalue.astype(jnp.uint8), found.scale


def nf4_kernel(
    kernel: Float[Array, "layers inputs outputs"], logical: tuple[str | None, ...], mesh: Mesh
) -> tuple[UInt8[Array, "layers blocks 32 outputs"], Float[Array, "layers blocks outputs"]]:
    """Codes, packed, and scales of stacked kernels, each device its own blocks.

    Args:
      logical: axes of the kernel.
    """
    return _program(logical, mesh, kernel.shape)(kernel)


@lru_cache(maxsize=64)
def _program(logical: tuple[str | None, ...], mesh: Mesh, shape: tuple[int, ...]) -> Any:
    layers, inputs, outputs = fitting(logical, (shape[0], shape[1] // NF4_BLOCK, shape[2]), mesh.shape)

    def of_layers(kernel: Array) -> tuple[Array, Array]:
        def of_layer(one: Array) -> tuple[Array, Array]:
            codes, scale = nf4_codes(one)
            return packed(codes), scale

        return jax.lax.map(of_layer, kernel)  # a layer at a time: qwix compares each weight with 16 levels

    out = (layers, inputs, None, outputs), (layers, inputs, outputs)
    # By hand, not by the partitioner: qwix flattens what it quantises, which would gather a split kernel on every device.
    local = jax.shard_map(
        of_layers,
        mesh=mesh,
        in_specs=spec((layers, inputs, outputs)),
        out_specs=tuple(map(spec, out)),
        check_vma=False,
    )
    return jax.jit(local, out_shardings=tuple(sharding(mesh, axes) for axes in out))
