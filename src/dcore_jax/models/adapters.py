"""What a Linear may have besides a dense kernel: a low-rank update (LoRA), and a kernel in 4 bits (NF4, QLoRA).

Both are plain arrays with a layer's own shapes, so that they are stacked, scanned and sharded as the kernels are. How they are
made, loaded and merged is in `dcore_jax.lora`.

Shape letters: N tokens, I inputs, O outputs, R rank, K blocks of 64 inputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from dcore_jax.mesh import constrain, divisible

# The 16 levels of NormalFloat4: QLoRA (2305.14314), appendix E.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
NF4_BLOCK = 64  # inputs of one output that share a scale


class Adapter(nnx.Module):
    """The update of a Linear, `scale * (x @ a) @ b`; of a layer or, with a leading axis, of all layers.

    Source:
      LoRA (2106.09685), section 4.1, with scale = alpha / rank.
    """

    def __init__(self, a: Any, b: Any, scale: float):  # arrays or shapes: [..., I, R] and [..., R, O]
        self.a, self.b = nnx.Param(a), nnx.Param(b)
        self.scale = scale

    def __call__(
        self, x: Float[Array, "tokens inputs"], split: tuple[str | None, str | None]
    ) -> Float[Array, "tokens outputs"]:
        """The update for these tokens, in their dtype; `split` as the Linear's."""
        a = constrain(self.a.get_value().astype(x.dtype), split[0], None)
        b = constrain(self.b.get_value().astype(x.dtype), None, split[1])
        return self.scale * ((x @ a) @ b)


class NF4Kernel(nnx.Module):
    """A frozen kernel [I, O] in 4 bits a weight, and a float32 scale for each block of 64 inputs: 4.5 bits in all.

    Byte j of a block holds the code of weight j in its low half and that of weight j + 32 in its high half.
    """

    def __init__(
        self, codes: Any, absmax: Any
    ):  # arrays or shapes: uint8 [..., K, 32, O] and float32 [..., K, O]
        self.codes, self.absmax = nnx.Param(codes), nnx.Param(absmax)

    def product(
        self, x: Float[Array, "tokens inputs"], split: tuple[str | None, str | None]
    ) -> Float[Array, "tokens outputs"]:
        """`x @ kernel`. The kernel exists in x's dtype for this product only; the backward pass makes it again."""

        def product(x: Array, codes: Array, absmax: Array) -> Array:
            # Gathered over fsdp as codes: 4.5 bits a weight are sent.
            inputs, outputs = divisible(split, absmax.shape)
            codes = constrain(codes, inputs, None, outputs)
            absmax = constrain(absmax, inputs, outputs)
            return x @ constrain(dequantized(codes, absmax).astype(x.dtype), *split)

        again = jax.checkpoint(product, prevent_cse=False, policy=jax.checkpoint_policies.nothing_saveable)
        return again(x, self.codes.get_value(), self.absmax.get_value())


def packed(codes: UInt8[Array, "*layers inputs outputs"]) -> UInt8[Array, "*layers blocks 32 outputs"]:
    """Codes of 0 to 15, two to a byte, as `NF4Kernel` stores them."""
    *layers, inputs, outputs = codes.shape
    halves = codes.reshape(*layers, inputs // NF4_BLOCK, 2, NF4_BLOCK // 2, outputs)
    return halves[..., 0, :, :] | (halves[..., 1, :, :] << 4)


def dequantized(
    codes: UInt8[Array, "*layers blocks 32 outputs"], absmax: Float[Array, "*layers blocks outputs"]
) -> Float[Array, "*layers inputs outputs"]:
    """The kernel of packed codes, float32: the level of each code times its block's largest magnitude."""
    halves = jnp.concatenate([codes & 15, codes >> 4], axis=-2)  # [..., K, 64, O]
    values = _levels(halves) * absmax[..., None, :]
    *layers, blocks, block, outputs = values.shape
    return values.reshape(*layers, blocks * block, outputs)


def _levels(codes: UInt8[Array, "*any"]) -> Float[Array, "*any"]:
    """NF4_LEVELS[codes] as a tree of selects: elementwise, so that it is fused into what reads it and keeps any sharding.

    A gather from a table of 16, which qwix uses, is slow on TPUs, and over a split array it sends the codes around.
    """
    values: list[Array | float] = list(NF4_LEVELS)
    for bit in range(4):
        high = (codes >> bit) & 1 == 1
        values = [jnp.where(high, b, a) for a, b in zip(values[::2], values[1::2])]
    return jnp.asarray(values[0], jnp.float32)
