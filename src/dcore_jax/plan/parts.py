"""What lies in a device's memory, by part: arguments from their shapes and shardings, the rest from the compiler's report."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from dcore_jax.aot import Built, CompiledProgram, device_bytes
from dcore_jax.engines.native.cache import LayerCache
from dcore_jax.engines.native.network import RolloutWeights
from dcore_jax.kernels.tiles import cross_entropy_block, token_block, vocab_block
from dcore_jax.lora import partition
from dcore_jax.plan.work import Shape
from dcore_jax.rl.step import Accumulated
from dcore_jax.target import Target, compiling_for
from dcore_jax.training import TrainState
from dcore_jax.training.optimizer import MasterState

# Every plan names these, in this order; the others stand behind them where they hold something.
PARTS = ("parameters", "moments", "gradients", "activations", "logits", "engine_weights", "engine_cache")


def argument_parts(built: Built) -> dict[str, int]:
    """Bytes on a device of a program's arguments, and of what lies beside it, by part."""
    parts: dict[str, int] = {}
    lora = any(_adapters(argument) for argument in built.arguments)
    for argument in built.arguments:
        if lora and isinstance(argument, nnx.State):
            trained, frozen = partition(argument)
            _add(parts, {"parameters": device_bytes(trained), "frozen_base": device_bytes(frozen)})
        else:
            _add(parts, _parts_of(argument))
    for name, tree in built.beside.items():
        _add(parts, _optimizer_parts(tree) if name == "optimizer" else {_key(name): device_bytes(tree)})
    return parts


def _adapters(argument: Any) -> bool:
    """Whether it holds adapters: the other parameters are then the frozen base."""
    params = argument.params if isinstance(argument, TrainState) else argument
    return isinstance(params, nnx.State) and bool(jax.tree.leaves(partition(params)[0]))


def _parts_of(argument: Any) -> dict[str, int]:
    if isinstance(argument, TrainState):
        return state_parts(argument)
    if isinstance(argument, Accumulated):
        return {"gradients": device_bytes(argument.gradient)}
    if isinstance(argument, RolloutWeights):
        return {"engine_weights": device_bytes(argument)}
    if isinstance(argument, nnx.State):
        return {"parameters": device_bytes(argument)}
    if isinstance(argument, tuple) and argument and isinstance(argument[0], LayerCache):
        return {"engine_cache": device_bytes(argument)}
    return {"batch": device_bytes(argument)} if _has_arrays(argument) else {}


def state_parts(state: TrainState) -> dict[str, int]:
    """Of what a run carries from step to step; with LoRA the parameters are the adapters, and the base is no part of it."""
    parts = {"parameters": device_bytes(state.params), **_optimizer_parts(state.optimizer)}
    if state.ema is not None:
        parts["average"] = device_bytes(state.ema)
    return parts


def _optimizer_parts(optimizer: PyTree) -> dict[str, int]:
    # What lies in host memory between steps is no part of the device's.
    optimizer = jax.tree.map(lambda x: None if x.sharding.memory_kind == "pinned_host" else x, optimizer)
    if isinstance(optimizer, MasterState):
        return {"masters": device_bytes(optimizer.masters), "moments": device_bytes(optimizer.inner)}
    return {"moments": device_bytes(optimizer)}


def memory_parts(
    shape: Shape,
    built: Built,
    compiled: CompiledProgram,
    *,
    tokens: int,
    head_tokens: int,
    accumulation: int,
    target: Target,
    widened: bool = False,
) -> dict[str, int]:
    """All of `compiled.total` by part; they add up to it, unless the compiler widened.

    Of the compiler's temporaries, gradients, logits and activations are what their shapes say, as far as so many bytes are
    there; `workspace` is the rest: gathered weights, one layer's intermediate results, the head's gradient, the kernels' scratch.

    Args:
      tokens: of a microbatch, over all devices. head_tokens: of those, the ones that the output head runs on.
      accumulation: microbatches of a step.
      widened: the compiler computes bfloat16 in float32, as XLA's does on CPUs: what it takes beside gradients and logits, which
        are float32 anyway, is counted as half.
    """
    parts = argument_parts(built)
    named = sum(parts.values())
    left = compiled.total - named
    for name, size in temporary_parts(
        shape,
        compiled.name,
        tokens=tokens,
        head_tokens=head_tokens,
        accumulation=accumulation,
        target=target,
        adapters=parts.get("parameters", 0),
    ).items():
        if name == "activations" and widened:
            left //= 2
        size = max(0, min(size, left))
        parts[name] = parts.get(name, 0) + size
        left -= size
    if compiled.name == "RL score" and widened:
        left //= 2
    if left < 0:  # an argument that the program does not read is none of the compiler's
        parts["batch"] = max(0, parts.get("batch", 0) + left)
        left = compiled.total - sum(parts.values())
    parts["workspace"] = left
    return in_order(parts)


def in_order(parts: Mapping[str, int]) -> dict[str, int]:
    """PARTS first, each of them named; then what else holds something."""
    rest = {name: size for name, size in parts.items() if name not in PARTS and size}
    return {**{name: parts.get(name, 0) for name in PARTS}, **rest}


def temporary_parts(
    shape: Shape,
    program: str,
    *,
    tokens: int,
    head_tokens: int,
    accumulation: int,
    target: Target,
    adapters: int = 0,
) -> dict[str, int]:
    """What a training program must hold beside its arguments, by its shapes: see `memory_parts`.

    Args:
      adapters: bytes of a LoRA run's adapters, whose gradients alone are held, float32 as they are.
    """
    if program not in ("SFT step", "RL score", "RL update"):
        return {}
    local, heads = tokens // shape.batch_shards, max(1, head_tokens // shape.batch_shards)
    vocab = shape.model.vocab_size // shape.tensor
    with compiling_for(target):  # block sizes are the target's
        if program == "SFT step":
            block = (cross_entropy_block(heads, vocab), vocab)
        else:
            block = (token_block(heads), vocab_block(heads, vocab))
    # In this order, activations last: the others are float32 with every compiler.
    parts = {"logits": 4 * math.prod(block)}
    if program == "RL score":
        return parts
    gradient = 4 if accumulation > 1 else jnp.dtype(shape.compute.param_dtype).itemsize
    parts["gradients"] = adapters if shape.lora else gradient * shape.model.num_parameters // shape.devices
    parts["activations"] = local * shape.model.num_layers * _kept_per_token(shape)
    return parts


def _kept_per_token(shape: Shape) -> int:
    """Bytes that a layer's forward pass keeps of a token for its backward pass; the layer's input always."""
    model, item = shape.model, shape.itemsize
    query, key = (n * model.head_dim // shape.tensor for n in (model.num_heads, model.num_kv_heads))
    width, mlp = model.hidden_size, model.intermediate_size // shape.tensor
    kept = {
        "full": 0,
        "attention": query,
        "dots": query + 2 * key + 2 * width + 2 * mlp,
        # Also inputs of every product and of both norms, the rotated heads, attention's output.
        "none": 2 * (query + 2 * key) + query + 6 * width + 5 * mlp,
    }[shape.compute.remat]
    return (width + kept) * item


def _add(parts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, size in more.items():
        parts[name] = parts.get(name, 0) + size


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _has_arrays(argument: Any) -> bool:
    return any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(argument))
