"""A dense decoder in Flax NNX: Qwen3, Qwen2/2.5 and Llama 3.x, by their configs.

Layers are stacked along a leading axis and run under `lax.scan`, so that compile time does not grow with depth. Parameters have
their own dtype (float32 by default); every matmul runs in the compute dtype; norms, rotations and softmax run in float32.

Shape letters: B batch, S length, D width, H heads, K key/value heads, C head_dim, F MLP width, V vocabulary, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dcore_jax.errors import check_choice
from dcore_jax.mesh import constrain
from dcore_jax.models.adapters import Adapter, NF4Kernel
from dcore_jax.models.attention import attend, save_attention
from dcore_jax.models.config import ModelConfig
from dcore_jax.models.rope import rotate, rotation

# What is stored for the backward pass; the rest is recomputed (rematerialisation). From most memory to least.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # everything is stored
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of the weight matmuls
    "attention": save_attention,  # attention's output and the softmax's normaliser: its forward pass is not repeated
    "full": jax.checkpoint_policies.nothing_saveable,  # a layer's input only
}


@dataclass(frozen=True)
class Compute:
    """How to run the network. Changes nothing in what it computes beyond rounding."""

    dtype: Any = jnp.float32  # of activations and matmuls
    param_dtype: Any = jnp.float32  # of the parameters in memory
    attention: str = "auto"  # auto | xla | cudnn | splash, see models.attention
    remat: str = "none"  # a name of REMAT_POLICIES

    def __post_init__(self) -> None:
        check_choice("remat", self.remat, REMAT_POLICIES)


# Runs a layer's attention: (q, k, v, cache of the layer) -> (output, new cache of the layer).
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale` over the last axis, in float32."""

    def __init__(self, size: int, epsilon: float, compute: Compute):
        self.scale = nnx.Param(jnp.ones((size,), compute.param_dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (self.scale.get_value().astype(jnp.float32) * y).astype(x.dtype)


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel [inputs, outputs].

    Args:
      split: logical axes of the kernel in use: the side that the tensor axis splits has a name, the other is None.
      std: standard deviation of the initial kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        split: tuple[str | None, str | None],
        std: float,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        self.kernel: nnx.Param | NF4Kernel = nnx.Param(
            std * jax.random.normal(rngs.params(), (inputs, outputs), compute.param_dtype)
        )
        self.bias = nnx.Param(jnp.zeros((outputs,), compute.param_dtype)) if bias else None
        self.adapter: Adapter | None = nnx.data(None)  # see dcore_jax.lora
        self.split = split

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        # One token axis: for a product over two axes (the kernel's gradient) XLA's CPU backend would transpose a copy first.
        tokens = x.reshape(-1, x.shape[-1])
        if isinstance(self.kernel, NF4Kernel):
            y = self.kernel.product(tokens, self.split)
        else:
            # The kernel is gathered over fsdp here, after the cast, so that it is sent in the compute dtype.
            y = tokens @ constrain(self.kernel.get_value().astype(x.dtype), *self.split)
        if self.adapter is not None:
            y = y + self.adapter(tokens, self.split)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.get_value().astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; `run_attention` decides what is attended to and updates the cache."""

    def __init__(self, config: ModelConfig, compute: Compute, rngs: nnx.Rngs):
        D, C, std = config.hidden_size, config.head_dim, config.initializer_range
        into: dict[str, Any] = {
            "split": (None, "heads"),
            "bias": config.qkv_bias,
            "std": std,
            "compute": compute,
            "rngs": rngs,
        }
        self.q = Linear(D, config.num_heads * C, **into)
        self.k = Linear(D, config.num_kv_heads * C, **into)
        self.v = Linear(D, config.num_kv_heads * C, **into)
        self.o = Linear(
            config.num_heads * C,
            D,
            bias=config.output_bias,
            split=("heads", None),
            std=std,
            compute=compute,
            rngs=rngs,
        )
        norm = config.qk_norm
        self.q_norm = RMSNorm(C, config.rms_norm_eps, compute) if norm else None
        self.k_norm = RMSNorm(C, config.rms_norm_eps, compute) if norm else None
        self.head_dim = C

    def __call__(self, x_BxSxD, rope, run_attention: Attend, cache):
        B, S, _ = x_BxSxD.shape
        q, k, v = (project(x_BxSxD).reshape(B, S, -1, self.head_dim) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, cache = run_attention(rotate(q, *rope), rotate(k, *rope), v, cache)
        return self.o(out.reshape(B, S, -1)), cache


class MLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))` (SwiGLU)."""

    def __init__(self, config: ModelConfig, compute: Compute, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        rest: dict[str, Any] = {"bias": config.mlp_bias, "std": config.initializer_range}
        rest |= {"compute": compute, "rngs": rngs}
        self.gate = Linear(D, F, split=(None, "mlp"), **rest)
        self.up = Linear(D, F, split=(None, "mlp"), **rest)
        self.down = Linear(F, D, split=("mlp", None), **rest)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """A pre-norm transformer layer: attention and MLP, each with a residual connection."""

    def __init__(self, config: ModelConfig, compute: Compute, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, compute)
        self.attention = Attention(config, compute, rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, compute)
        self.mlp = MLP(config, compute, rngs)

    def __call__(self, x, rope, run_attention: Attend, cache):
        out, cache = self.attention(self.attention_norm(x), rope, run_attention, cache)
        x = constrain(x + out, "batch", None, None)
        return constrain(x + self.mlp(self.mlp_norm(x)), "batch", None, None), cache


class Decoder(nnx.Module):
    """Token ids to hidden states and logits.

    `nnx.split(decoder)`, done once, gives a static graph and a pytree of parameters for plain `jax.jit`.
    """

    def __init__(self, config: ModelConfig, *, compute: Compute | None = None, rngs: nnx.Rngs):
        compute = compute or Compute()
        self.config, self.compute = config, compute
        V, D, std, dtype = (
            config.vocab_size,
            config.hidden_size,
            config.initializer_range,
            compute.param_dtype,
        )
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (V, D), dtype))
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.layers = nnx.vmap(lambda key: Layer(config, compute, nnx.Rngs(params=key)))(keys)
        self.norm = RMSNorm(D, config.rms_norm_eps, compute)
        tied = config.tie_word_embeddings
        self.head = None if tied else nnx.Param(std * jax.random.normal(rngs.params(), (D, V), dtype))

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "batch length"],
        positions: Int[Array | np.ndarray, "batch length"] | None = None,
        segment_ids: Int[Array | np.ndarray, "batch length"] | None = None,
    ) -> Float[Array, "batch length vocab"]:
        """Logits in float32. For a loss use `hidden` and `dcore_jax.kernels`, which never hold these logits in memory.

        Args:
          positions: by default 0, 1, 2, ... in each row.
          segment_ids: by default one segment per row.
        """
        hidden = self.hidden(tokens, positions, segment_ids)
        return jnp.matmul(hidden, self.unembed.astype(hidden.dtype), preferred_element_type=jnp.float32)

    @property
    def unembed(self) -> Float[Array, "width vocab"]:
        """The output head; with tied embeddings the transposed embedding."""
        return self.embedding.get_value().T if self.head is None else self.head.get_value()

    def head_in(self, dtype: Any) -> Float[Array, "width vocab"]:
        """`unembed` in another dtype, split as it is stored: what gathers it sends that dtype, not the stored one."""
        return constrain(self.unembed.astype(dtype), "embed", "vocab")

    def hidden(
        self,
        tokens: Int[Array | np.ndarray, "batch length"],
        positions: Int[Array | np.ndarray, "batch length"] | None = None,
        segment_ids: Int[Array | np.ndarray, "batch length"] | None = None,
        branches: Int[Array | np.ndarray, "batch length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Hidden states after the final norm, in the compute dtype. Arguments as in `__call__` and `attention.attend`."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.zeros_like(tokens)
        tokens, positions, segment_ids = (jnp.asarray(x) for x in (tokens, positions, segment_ids))
        branches = None if branches is None else jnp.asarray(branches)
        x = self.embed(tokens)

        def within_segments(q, k, v, cache):
            return attend(q, k, v, segment_ids, branches, implementation=self.compute.attention), cache

        return self.run_layers(x, positions, within_segments)[0]

    def embed(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        """Rows of the embedding, in the compute dtype."""
        # The table is cast and gathered over fsdp before the lookup, so that its rows come out split over the batch only.
        table = constrain(self.embedding.get_value().astype(self.compute.dtype), "vocab", None)
        return constrain(table[tokens], "batch", None, None)

    def run_layers(
        self,
        x: Float[Array, "batch length width"],
        positions: Int[Array, "batch length"],
        run_attention: Attend,
        caches: Any = None,
    ) -> tuple[Float[Array, "batch length width"], Any]:
        """All layers and the final norm, for training and evaluation.

        Args:
          x: embeddings.
          run_attention: `(q, k, v, cache) -> (output, cache)`; decides what is attended to.
          caches: a pytree whose leaves have a leading layer axis; None without a cache.

        Returns:
          Hidden states and the new caches.
        """
        rope = rotation(positions, self.config)
        graph, params = nnx.split(self.layers)

        def one_layer(x, layer):
            params, cache = layer
            return nnx.merge(graph, params)(x, rope, run_attention, cache)

        policy = REMAT_POLICIES[self.compute.remat]
        if policy is not None:
            one_layer = jax.checkpoint(one_layer, policy=policy, prevent_cse=False)
        x, caches = jax.lax.scan(one_layer, x, (params, caches))
        return self.norm(x), caches

    def with_compute(self, **changes: Any) -> "Decoder":
        """A decoder with the same weights and other fields of Compute: `model.with_compute(remat="full")`."""
        graph, params = nnx.split(self)
        copy = nnx.merge(graph, params)
        copy.compute = replace(self.compute, **changes)
        return copy


def abstract_decoder(config: ModelConfig, compute: Compute | None = None) -> Decoder:
    """A decoder of shapes and dtypes only; nothing is allocated."""
    return nnx.eval_shape(lambda: Decoder(config, compute=compute, rngs=nnx.Rngs(params=0)))
