"""The decoder's forward passes for generation: weights cast and unstacked once, prefill of prompts, decoding of tokens.

Layers are unrolled here, not scanned: a scan would copy every layer's weights and cache out of their stacks at every token, which
at batch 1 costs more than the arithmetic. In exchange compile time grows with depth.

Shape letters: R rows (slots), S length of prompts, D width, V vocabulary, N steps of a dispatch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dcore_jax.engines.native.cache import (
    Cache,
    LayerCache,
    attend_to_cache,
    capacity,
    constrain_cache,
    replicated,
    to_blocks,
)
from dcore_jax.engines.native.sampling import RowSampling, sample
from dcore_jax.lora import lora_shardings, merged_leaves
from dcore_jax.mesh import sharding
from dcore_jax.models import Compute, Decoder, ModelConfig, abstract_decoder
from dcore_jax.models.attention import attend
from dcore_jax.models.rope import rotation
from dcore_jax.weights import parameters


@dataclass(frozen=True)
class Network:
    """An architecture and how it is computed; hashable, so that engines of the same one share compiled programs."""

    config: ModelConfig
    compute: Compute


class RolloutWeights(NamedTuple):
    """A decoder's parameters, unstacked."""

    outer: Any  # nnx.State of the decoder without its layers
    layers: tuple[Any, ...]  # nnx.State of each layer


@lru_cache(maxsize=32)
def _graphs(network: Network) -> tuple[Any, Any]:
    decoder = abstract_decoder(network.config, network.compute)
    return nnx.split(decoder)[0], nnx.split(decoder.layers)[0]


def rollout_weights(
    network: Network, state: nnx.State, mesh: Mesh | None, adapter_scale: float = 0.0
) -> RolloutWeights:
    """Weights for generation: matmul weights in the compute dtype, layers unstacked, adapters merged.

    A state with adapters or a base in nf4 is merged layer by layer here, in float32 and before the cast: the trainer hands over
    references to its base, and only the adapters in them have changed.

    Under a mesh they are gathered over fsdp and stay split over tensor, so that no token waits for a gather. Norm scales keep
    their dtype, as the decoder multiplies them in float32. One program; the trainer's weights are not changed.
    """
    if mesh is not None:
        devices = set(mesh.devices.flat)
        if any(leaf.sharding.device_set != devices for leaf in jax.tree.leaves(state)):
            # A program cannot read arrays of other devices than its own: copy them to the mesh first.
            state = jax.device_put(state, lora_shardings(network.config, mesh, state))
    return _cast_program(network, mesh, adapter_scale)(state)


@lru_cache(maxsize=32)
def _cast_program(
    network: Network, mesh: Mesh | None, adapter_scale: float
) -> Callable[[nnx.State], RolloutWeights]:
    """The program of `rollout_weights`, compiled once for an architecture and a mesh."""
    unstack = partial(_cast_and_unstack, network, adapter_scale)
    if mesh is None:
        return jax.jit(unstack)
    where = jax.tree.map(lambda x: x.sharding, rollout_weights_abstract(network, mesh))
    return jax.jit(unstack, out_shardings=where)


def rollout_weights_abstract(network: Network, mesh: Mesh) -> RolloutWeights:
    """The shapes and shardings of `rollout_weights` on a mesh; nothing is allocated."""
    logical = {
        row.path: tuple(None if a == "embed" else a for a in row.logical)
        for row in parameters(network.config)
    }

    def sharded(prefix: tuple[str, ...], part: nnx.State) -> nnx.State:
        flat = {}
        for path, leaf in nnx.to_flat_state(part):
            axes, shape = logical[(*prefix, *map(str, path))], leaf.get_value()
            where = sharding(mesh, axes[1:] if prefix else axes)
            flat[path] = nnx.Param(jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where))
        return nnx.State.from_flat_path(flat)

    state = nnx.split(abstract_decoder(network.config, network.compute))[1]
    shapes = jax.eval_shape(partial(_cast_and_unstack, network, 0.0), state)
    return RolloutWeights(sharded((), shapes.outer), tuple(sharded(("layers",), x) for x in shapes.layers))


def _cast_and_unstack(network: Network, adapter_scale: float, state: nnx.State) -> RolloutWeights:
    def cast(path, value):
        return nnx.Param(value if path[-1] == "scale" else value.astype(network.compute.dtype))

    flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    outer = {path: cast(path, x) for path, x in flat.items() if path[0] != "layers"}
    layers = []
    for i in range(network.config.num_layers):
        layer = {path[1:]: x[i] for path, x in flat.items() if path[0] == "layers"}
        layers.append({path: cast(path, x) for path, x in merged_leaves(layer, adapter_scale).items()})
    return RolloutWeights(
        nnx.State.from_flat_path(outer), tuple(nnx.State.from_flat_path(layer) for layer in layers)
    )


def _forward(network: Network, weights: RolloutWeights, tokens, rope, run_attention: Callable, caches):
    """The decoder, hidden states [R, S, D] after the final norm, and every layer's new cache.

    `rope` is the positions' `rotation`. It must come from a constant or a loop's carry: XLA's CPU backend fuses sines and cosines
    that it can see into every layer, and then computes them again for every head.
    """
    graph, layer_graph = _graphs(network)
    # A Decoder needs its stack of layers; nothing below runs it, so the first layer takes its place.
    decoder: Decoder = nnx.merge(graph, nnx.State({**weights.outer, "layers": weights.layers[0]}))
    x, new = decoder.embed(tokens), []
    for params, cache in zip(weights.layers, caches, strict=True):
        x, cache = nnx.merge(layer_graph, params)(x, rope, run_attention, cache)
        new.append(cache)
    return decoder, decoder.norm(x), tuple(new)


@partial(jax.jit, static_argnums=0)
def prefill(network: Network, weights: RolloutWeights, tokens: Int[Array, "rows length"]) -> Cache:
    """Keys and values of prompts [R, S], padded at the end to a `bucket`: no token attends to the padding after it."""
    rows, length = tokens.shape

    def run_attention(q, k, v, _):
        one_segment = jnp.zeros((rows, length), jnp.int32)
        return attend(q, k, v, one_segment, implementation=network.compute.attention), to_blocks(k, v)

    with jax.ensure_compile_time_eval():  # the rotation is then a constant, see _forward
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
        rope = rotation(positions, network.config)
    return _forward(network, weights, tokens, rope, run_attention, (None,) * network.config.num_layers)[2]


class Rows(NamedTuple):
    """The state of every slot; arrays of the host or of the device."""

    token: Int[
        Array | np.ndarray, " rows"
    ]  # the next input: the prompt's last token, or the last one sampled
    position: Int[Array | np.ndarray, " rows"]  # of that token in its sequence
    step: Int[Array | np.ndarray, " rows"]  # tokens sampled so far
    left: Int[Array | np.ndarray, " rows"]  # tokens that may still be sampled; 0: the slot is idle


class Decoded(NamedTuple):
    """What one dispatch sampled; of every row the first `sampled` columns are valid."""

    tokens: Int[Array | np.ndarray, "rows steps"]
    logprobs: Float[Array | np.ndarray, "rows steps"]
    sampled: Int[Array | np.ndarray, " rows"]
    left: Int[Array | np.ndarray, " rows"]  # 0: finished


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(
    network: Network,
    steps: int,
    weights: RolloutWeights,
    cache: Cache,
    rows: Rows,
    sampling: RowSampling,
    stop_ids: Int[Array, "rows stops"],
    finish_threshold: Int[Array, ""],
) -> tuple[Cache, Decoded]:
    """Samples up to `steps` tokens in every busy row, as one program.

    Args:
      cache: donated; must have room for `steps` more positions in every busy row.
      stop_ids: token ids that end each row, padded with -1.
      finish_threshold: stop early when so many rows have finished, as other requests wait for their slots.

    Returns:
      The cache with the new positions, and what was sampled, replicated over the mesh.
    """
    busy_at_start = jnp.sum(rows.left > 0)
    out_of_range = capacity(cache)

    def rope_of(rows: Rows):
        return rotation(jnp.asarray(rows.position)[:, None], network.config)

    def keep_going(carry):
        i, _, rows, *_ = carry
        busy = jnp.sum(rows.left > 0)
        return (i < steps) & (busy > 0) & (busy_at_start - busy < finish_threshold)

    def sample_token(carry):
        i, cache, rows, rope, tokens, logprobs = carry
        busy = rows.left > 0
        writes = jnp.where(busy, rows.position, out_of_range)  # an idle row must not write to the cache

        def run_attention(q, k, v, layer: LayerCache):
            return attend_to_cache(q, k, v, rows.position, writes, layer)

        decoder, hidden, cache = _forward(network, weights, rows.token[:, None], rope, run_attention, cache)
        hidden_RxD = hidden[:, 0]
        logits_RxV = jnp.matmul(hidden_RxD, decoder.unembed, preferred_element_type=jnp.float32)
        token, logprob = sample(logits_RxV, rows.step, sampling)
        stopped = (token[:, None] == stop_ids).any(axis=1)
        rows = Rows(
            token=jnp.where(busy, token, rows.token),
            position=rows.position + busy,
            step=rows.step + busy,
            left=jnp.where(busy & ~stopped, rows.left - 1, 0),
        )
        tokens = tokens.at[:, i].set(token)
        logprobs = logprobs.at[:, i].set(logprob)
        return i + 1, cache, rows, rope_of(rows), tokens, logprobs

    shape_RxN = (rows.token.shape[0], steps)
    tokens, logprobs = jnp.zeros(shape_RxN, jnp.int32), jnp.zeros(shape_RxN, jnp.float32)
    start = (jnp.int32(0), cache, rows, rope_of(rows), tokens, logprobs)
    _, cache, after, _, tokens, logprobs = jax.lax.while_loop(keep_going, sample_token, start)
    cache = jax.tree.map(constrain_cache, cache)
    decoded = Decoded(tokens, logprobs, after.step - rows.step, after.left)
    return cache, jax.tree.map(replicated, decoded)  # every process of a mesh reads all of it
