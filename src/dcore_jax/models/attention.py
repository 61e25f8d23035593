"""Causal attention within segments (block-diagonal causal mask), with a choice of backends.

`xla` runs everywhere. `cudnn` is the flash kernel of NVIDIA GPUs (bf16 or fp16). `splash` is the TPU's. No backend ignores the
segments: a combination that cannot mask them raises.

Within a segment, continuations of one prefix may stand one after the other, each a branch: a token then attends to the prefix and
to its own branch, as if the prefix had been repeated before each. `splash` cannot express that.
"""

import math
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dcore_jax.errors import UserError, check_choice
from dcore_jax.mesh import BATCH_AXES
from dcore_jax.models.blocked_attention import SAVED_NAME, blocked_attention
from dcore_jax.target import target_platform

AttentionImplementation = Literal["auto", "xla", "cudnn", "splash", "splash_interpret"]

# Tokens per block of blocked_attention. On an accelerator each turn of a loop synchronises with the host: few, large blocks
# there.
XLA_BLOCK = {"cpu": 256, "gpu": 512, "tpu": 512}


_saved_by_name = jax.checkpoint_policies.save_only_these_names(SAVED_NAME)


def save_attention(primitive: Any, *avals: Any, **parameters: Any) -> Any:
    """The policy of `jax.checkpoint` that keeps what attention's backward pass needs of its forward pass, with every backend."""
    # splash and blocked_attention name their outputs; cuDNN's forward pass is an operation of JAX that names none.
    if primitive.name.startswith("dot_product_attention_fwd"):
        return True
    return _saved_by_name(primitive, *avals, **parameters)


def segment_mask(
    segment_ids: Int[Array, "batch length"], branches: Int[Array, "batch length"] | None = None
) -> Bool[Array, "batch 1 length length"]:
    """True where query i attends to key j: the same segment, j not after i, and j's branch 0 or that of i."""
    index = jnp.arange(segment_ids.shape[1])
    visible = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    visible &= index[None, :] <= index[:, None]
    if branches is None:
        return visible
    keys = branches[:, None, None, :]
    return visible & ((keys == 0) | (keys == branches[:, None, :, None]))


def choose_implementation(
    implementation: str,
    *,
    platform: str,
    dtype: jnp.dtype,
    head_dim: int,
    length: int,
    shared_prefixes: bool = False,
) -> AttentionImplementation:
    """Resolves `auto` to the fastest backend that the platform, dtype and sizes allow.

    Args:
      length: of a row, in tokens.
      shared_prefixes: whether segments have branches.

    Raises:
      UserError: an unknown name, or a backend that cannot run here, with what to use instead.
    """
    check_choice("attention", implementation, get_args(AttentionImplementation))
    half = dtype in (jnp.bfloat16, jnp.float16)
    # Its backward pass takes a mask of an even number of tokens only.
    cudnn_fits = half and head_dim % 8 == 0 and head_dim <= 128 and length % 2 == 0
    splash_fits = head_dim % 128 == 0 and length % 128 == 0
    if implementation == "auto":
        if platform == "gpu" and cudnn_fits:
            return "cudnn"
        return "splash" if platform == "tpu" and splash_fits and not shared_prefixes else "xla"
    if implementation == "cudnn":
        if platform != "gpu":
            raise UserError(f"attention cudnn needs an NVIDIA GPU, this is {platform}; use attention=xla")
        if not cudnn_fits:
            raise UserError(
                "attention cudnn needs bf16 or fp16, head_dim <= 128, a multiple of 8, and rows of an even number of tokens; "
                f"here {dtype}, {head_dim} and {length}: use attention=xla"
            )
    if implementation == "splash" and platform != "tpu":
        raise UserError(f"attention splash needs a TPU, this is {platform}; use attention=xla")
    if implementation.startswith("splash") and length % 128:
        raise UserError(
            f"attention splash needs rows of a multiple of 128 tokens, not {length}; use attention=xla"
        )
    if implementation.startswith("splash") and shared_prefixes:
        raise UserError(
            "attention splash cannot share a prefix among continuations; repeat it (packing.mode separate) or use attention=xla"
        )
    return implementation  # type: ignore[return-value]


def attend(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    branches: Int[Array, "batch length"] | None = None,
    *,
    implementation: str = "auto",
) -> Float[Array, "batch length heads head_dim"]:
    """Causal softmax attention within segments, scaled by `head_dim ** -0.5`; softmax in float32.

    Args:
      segment_ids: of packed rows: a segment is a run of equal ids, in temporal order. Padding may have an id of its own.
      branches: 0 on a segment's prefix, which comes first, then one run of equal ids for each of its continuations: a token
        attends to the prefix and to its own continuation. None: segments have no branches.
      implementation: a name of AttentionImplementation.

    Raises:
      UserError: as `choose_implementation`.
    """
    chosen = choose_implementation(
        implementation,
        platform=target_platform(),
        dtype=q.dtype,
        head_dim=q.shape[-1],
        length=q.shape[1],
        shared_prefixes=branches is not None,
    )
    local = {"xla": _xla, "cudnn": _cudnn}.get(
        chosen, partial(_splash, interpret=chosen == "splash_interpret")
    )
    # XLA's partitioner cannot split a kernel, nor a loop whose bounds depend on the data: each device gets its own rows and
    # heads.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return local(q, k, v, segment_ids, branches)
    if chosen == "xla" and not _divides(mesh, q.shape[0], k.shape[2]):
        return local(q, k, v, segment_ids, branches)
    rows, heads = P(BATCH_AXES), P(BATCH_AXES, None, "tensor", None)
    return jax.shard_map(local, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)(
        q, k, v, segment_ids, branches
    )


def _divides(mesh: jax.sharding.AbstractMesh, rows: int, kv_heads: int) -> bool:
    """Whether rows and heads split evenly over the mesh; where they do not, the computation is left to XLA's partitioner."""
    sizes = mesh.shape
    return (
        rows % math.prod(sizes.get(a, 1) for a in BATCH_AXES) == 0 and kv_heads % sizes.get("tensor", 1) == 0
    )


def _xla(q, k, v, segment_ids, branches):
    return blocked_attention(q, k, v, segment_ids, branches, block=XLA_BLOCK[target_platform()])


def _cudnn(q, k, v, segment_ids, branches):
    mask = segment_mask(segment_ids, branches)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def _splash(q, k, v, segment_ids, branches, *, interpret):
    assert branches is None  # refused by choose_implementation
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
    attention = make(causal, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=SAVED_NAME)
    ids = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)

    def one_row(q, k, v, ids):  # [length, heads, head_dim]
        # The kernel does not scale. In float32, since in bf16 the scale itself would be rounded first.
        scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
        q, k, v = (jnp.swapaxes(x, 0, 1) for x in (scaled, k, v))
        out = attention(q, k[0] if k.shape[0] == 1 else k, v[0] if v.shape[0] == 1 else v, segment_ids=ids)
        return jnp.swapaxes(out, 0, 1)

    return jax.vmap(one_row)(q, k, v, ids)
