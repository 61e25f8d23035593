"""Causal attention that never crosses a segment border, on every backend.

`xla` runs everywhere. `cudnn` is the flash kernel of NVIDIA GPUs (bf16 or fp16). `splash` is the TPU's. A combination that cannot
honour the segments raises: no backend ignores them.
"""

import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dcore_jax.errors import UserError
from dcore_jax.mesh import BATCH_AXES
from dcore_jax.models.blocked_attention import blocked_attention

AttentionImplementation = Literal["auto", "xla", "cudnn", "splash", "splash_interpret"]

# Tokens of a block of blocked_attention. An accelerator asks the host about each turn of its loops: few and large ones there.
XLA_BLOCK = {"cpu": 256, "gpu": 512, "tpu": 512}


def segment_mask(segment_ids: Int[Array, "batch length"]) -> Bool[Array, "batch 1 length length"]:
    """True where query i may see key j: the same segment, and j not after i."""
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    at = jnp.arange(segment_ids.shape[1])
    return same & (at[None, :] <= at[:, None])


def choose_implementation(
    implementation: str, *, platform: str, dtype: jnp.dtype, head_dim: int, length: int
) -> AttentionImplementation:
    """Resolves `auto` and refuses what the platform cannot do, naming the fix. `length` is the row length in tokens."""
    if implementation not in get_args(AttentionImplementation):
        raise UserError(
            f"attention {implementation!r} is unknown; choose one of {', '.join(get_args(AttentionImplementation))}"
        )
    half = dtype in (jnp.bfloat16, jnp.float16)
    cudnn_fits = half and head_dim % 8 == 0 and head_dim <= 128
    splash_fits = head_dim % 128 == 0 and length % 128 == 0
    if implementation == "auto":
        if platform == "gpu" and cudnn_fits:
            return "cudnn"
        return "splash" if platform == "tpu" and splash_fits else "xla"
    if implementation == "cudnn":
        if platform != "gpu":
            raise UserError(f"attention cudnn needs an NVIDIA GPU, this is {platform}; use attention=xla")
        if not cudnn_fits:
            raise UserError(
                f"attention cudnn needs bf16 or fp16 and head_dim <= 128, a multiple of 8; here {dtype} and {head_dim}: use xla"
            )
    if implementation == "splash" and platform != "tpu":
        raise UserError(f"attention splash needs a TPU, this is {platform}; use attention=xla")
    if implementation.startswith("splash") and length % 128:
        raise UserError(
            f"attention splash needs rows of a multiple of 128 tokens, not {length}; use attention=xla"
        )
    return implementation  # type: ignore[return-value]


def attend(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    implementation: str = "auto",
) -> Float[Array, "batch length heads head_dim"]:
    """Causal softmax attention within segments, scaled by `head_dim ** -0.5`; softmax in float32.

    Rows are packed: a segment is a run of equal ids, and order within the row is the order of time.
    Padding may have an id of its own.
    """
    chosen = choose_implementation(
        implementation, platform=jax.default_backend(), dtype=q.dtype, head_dim=q.shape[-1], length=q.shape[1]
    )
    local = {"xla": _xla, "cudnn": _cudnn}.get(
        chosen, partial(_splash, interpret=chosen == "splash_interpret")
    )
    # A kernel is opaque to the partitioner, and bounds of loops are one device's own: hand each its own rows and heads.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return local(q, k, v, segment_ids)
    if chosen == "xla" and not _divides(mesh, q.shape[0], k.shape[2]):
        return local(q, k, v, segment_ids)
    rows, heads = P(BATCH_AXES), P(BATCH_AXES, None, "tensor", None)
    return jax.shard_map(local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)(
        q, k, v, segment_ids
    )


def _divides(mesh: jax.sharding.AbstractMesh, rows: int, kv_heads: int) -> bool:
    """Whether all devices get as many rows and heads; where not, the partitioner finds a way of its own."""
    sizes = mesh.shape
    return (
        rows % math.prod(sizes.get(a, 1) for a in BATCH_AXES) == 0 and kv_heads % sizes.get("tensor", 1) == 0
    )


def _xla(q, k, v, segment_ids):
    return blocked_attention(q, k, v, segment_ids, block=XLA_BLOCK[jax.default_backend()])


def _cudnn(q, k, v, segment_ids):
    mask = segment_mask(segment_ids)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def _splash(q, k, v, segment_ids, *, interpret):
    heads, length = q.shape[2], q.shape[1]
    causal = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length)) for _ in range(heads)]
    )
    block = min(512, length)
    while length % block:
        block //= 2
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash_attention_kernel.make_splash_mqa_single_device if k.shape[2] == 1 else None
    make = kernel or splash_attention_kernel.make_splash_mha_single_device
    attention = make(causal, block_sizes=sizes, interpret=interpret)
    ids = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)

    def one_row(q, k, v, ids):  # [length, heads, head_dim]
        scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(
            q.dtype
        )  # in bf16 the scale would be rounded first
        q, k, v = (jnp.swapaxes(x, 0, 1) for x in (scaled, k, v))
        out = attention(q, k[0] if k.shape[0] == 1 else k, v[0] if v.shape[0] == 1 else v, segment_ids=ids)
        return jnp.swapaxes(out, 0, 1)

    return jax.vmap(one_row)(q, k, v, ids)
