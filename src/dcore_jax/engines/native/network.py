"""A decoder made ready for generation: weights cast once and cut into layers, and the ways through them.

Layers are unrolled here, not scanned: a scan would copy every layer's weights and cache out of their stacks at every token, which
at batch 1 costs more than the arithmetic. Compile time grows with depth in exchange.
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
    as_blocks,
    attend_to_cache,
    constrain_cache,
    replicated,
    room,
)
from dcore_jax.engines.native.sampling import RowSampling, sample
from dcore_jax.mesh import sharding
from dcore_jax.models import Compute, Decoder, ModelConfig, abstract_decoder
from dcore_jax.models.attention import attend
from dcore_jax.models.rope import rotation
from dcore_jax.weights import parameters, shardings


@dataclass(frozen=True)
class Network:
    """What the weights mean; hashable, so that engines of one architecture share compiled programs."""

    config: ModelConfig
    compute: Compute


class RolloutWeights(NamedTuple):
    outer: Any  # nnx.State of the decoder without its layers
    layers: tuple[Any, ...]  # nnx.State of each layer


@lru_cache(maxsize=32)
def _graphs(network: Network) -> tuple[Any, Any]:
    decoder = abstract_decoder(network.config, network.compute)
    return nnx.split(decoder)[0], nnx.split(decoder.layers)[0]


def rollout_weights(network: Network, state: nnx.State, mesh: Mesh | None) -> RolloutWeights:
    """Matmul weights in the compute dtype, layers apart; under a mesh gathered over fsdp, still split over tensor.

    Norm scales keep their dtype, as the decoder multiplies them in float32. One program; the trainer's weights are not touched.
    Weights that lie elsewhere than on the mesh are copied to it first.
    """
    if mesh is not None:
        devices = set(mesh.devices.flat)
        if any(leaf.sharding.device_set != devices for leaf in jax.tree.leaves(state)):
            state = jax.device_put(state, shardings(network.config, mesh))
    return _cast_program(network, mesh)(state)


@lru_cache(maxsize=32)
def _cast_program(network: Network, mesh: Mesh | None) -> Callable[[nnx.State], RolloutWeights]:
    """Compiled once for an architecture and a mesh, however often weights are updated."""
    if mesh is None:
        return jax.jit(partial(_cast_and_cut, network))
    logical = {
        row.path: tuple(None if a == "embed" else a for a in row.logical)
        for row in parameters(network.config)
    }

    def where(prefix: tuple[str, ...], part: nnx.State) -> nnx.State:
        flat = {}
        for path, _ in nnx.to_flat_state(part):
            axes = logical[(*prefix, *map(str, path))]
            flat[path] = nnx.Param(sharding(mesh, axes[1:] if prefix else axes))
        return nnx.State.from_flat_path(flat)

    state = nnx.split(abstract_decoder(network.config, network.compute))[1]
    shapes = jax.eval_shape(partial(_cast_and_cut, network), state)
    placed = RolloutWeights(where((), shapes.outer), tuple(where(("layers",), x) for x in shapes.layers))
    return jax.jit(partial(_cast_and_cut, network), out_shardings=placed)


def _cast_and_cut(network: Network, state: nnx.State) -> RolloutWeights:
    def cast(path, value):
        return value if path[-1] == "scale" else value.astype(network.compute.dtype)

    flat = {path: cast(path, leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}
    outer = {path: nnx.Param(x) for path, x in flat.items() if path[0] != "layers"}
    layers = [
        {path[1:]: nnx.Param(x[i]) for path, x in flat.items() if path[0] == "layers"}
        for i in range(network.config.num_layers)
    ]
    return RolloutWeights(
        nnx.State.from_flat_path(outer), tuple(nnx.State.from_flat_path(layer) for layer in layers)
    )


def _run(network: Network, weights: RolloutWeights, tokens, rope, run_attention: Callable, caches):
    """Decoder and hidden states [rows, length, width] after the final norm, with every layer's new cache.

    `rope` is a `rotation`, as a constant or from a loop's carry: sines and cosines that XLA's CPU backend may fuse, it computes
    again in every layer for every head.
    """
    graph, layer_graph = _graphs(network)
    # The first layer stands for the stack, which nothing below touches.
    decoder: Decoder = nnx.merge(graph, nnx.State({**weights.outer, "layers": weights.layers[0]}))
    x, new = decoder.embed(tokens), []
    for params, cache in zip(weights.layers, caches, strict=True):
        x, cache = nnx.merge(layer_graph, params)(x, rope, run_attention, cache)
        new.append(cache)
    return decoder, decoder.norm(x), tuple(new)


@partial(jax.jit, static_argnums=0)
def prefill(network: Network, weights: RolloutWeights, tokens: Int[Array, "rows length"]) -> Cache:
    """Keys and values of prompts, padded at their ends to a `bucket` with anything: no token sees one after it."""
    rows, length = tokens.shape

    def run_attention(q, k, v, _):
        same = jnp.zeros((rows, length), jnp.int32)
        return attend(q, k, v, same, implementation=network.compute.attention), as_blocks(k, v)

    with jax.ensure_compile_time_eval():
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
        rope = rotation(positions, network.config)
    return _run(network, weights, tokens, rope, run_attention, (None,) * network.config.num_layers)[2]


class Rows(NamedTuple):
    """Where every slot stands; arrays of the host or of the device."""

    token: Int[Array | np.ndarray, " rows"]  # to be fed next: the prompt's last or the last one sampled
    position: Int[Array | np.ndarray, " rows"]  # of that token in its sequence
    step: Int[Array | np.ndarray, " rows"]  # tokens sampled so far
    left: Int[Array | np.ndarray, " rows"]  # tokens that may still be sampled; 0: the slot is idle


class Decoded(NamedTuple):
    """What one dispatch sampled: the first `sampled` columns of every row."""

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
    stops: Int[Array, "rows stops"],
    enough: Int[Array, ""],
) -> tuple[Cache, Decoded]:
    """Up to `steps` tokens for every busy row, in one program; ends early when all are idle or `enough` rows have finished.

    `stops` are the token ids that end a row, padded with -1. The cache must have room for `steps` more positions in
    every busy row.
    """
    busy_at_start = jnp.sum(rows.left > 0)
    nowhere = room(cache)

    def rope_of(rows: Rows):
        return rotation(jnp.asarray(rows.position)[:, None], network.config)

    def more(carry):
        i, _, rows, *_ = carry
        busy = jnp.sum(rows.left > 0)
        return (i < steps) & (busy > 0) & (busy_at_start - busy < enough)

    def one(carry):
        i, cache, rows, rope, tokens, logprobs = carry
        busy = rows.left > 0
        writes = jnp.where(busy, rows.position, nowhere)

        def run_attention(q, k, v, layer: LayerCache):
            return attend_to_cache(q, k, v, rows.position, writes, layer)

        decoder, hidden, cache = _run(network, weights, rows.token[:, None], rope, run_attention, cache)
        hidden = hidden[:, 0]
        logits = jnp.matmul(hidden, decoder.unembed, preferred_element_type=jnp.float32)
        token, logprob = sample(logits, rows.step, sampling)
        stopped = (token[:, None] == stops).any(axis=1)
        rows = Rows(
            token=jnp.where(busy, token, rows.token),
            position=rows.position + busy,
            step=rows.step + busy,
            left=jnp.where(busy & ~stopped, rows.left - 1, 0),
        )
        tokens = tokens.at[:, i].set(token)
        logprobs = logprobs.at[:, i].set(logprob)
        return i + 1, cache, rows, rope_of(rows), tokens, logprobs

    shape = (rows.token.shape[0], steps)
    nothing = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    start = (jnp.int32(0), cache, rows, rope_of(rows), *nothing)
    _, cache, after, _, tokens, logprobs = jax.lax.while_loop(more, one, start)
    cache = jax.tree.map(constrain_cache, cache)
    decoded = Decoded(tokens, logprobs, after.step - rows.step, after.left)
    return cache, jax.tree.map(replicated, decoded)  # every process of a mesh reads all of it
