"""Arithmetic and traffic of a recipe's programs, counted from shapes.

Two counts of FLOPs: `useful` is what the mathematics needs (six per weight and token, as MFU has it), `flops` is what the program
executes, with what it computes again. Traffic is that of a device's memory.

Shape letters in names: T tokens, D width, V vocabulary, L layers.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from dcore_jax.metrics import training_flops
from dcore_jax.models import Compute, ModelConfig

# Products of the scores' size in attention's backward pass: scores again, d_weights, d_values, d_queries, d_keys. Splash runs two
# kernels, each of which computes the first two.
_BACKWARD_PRODUCTS = {"splash": 7}
_BLOCK = {"xla": 512, "cudnn": 128, "splash": 512}  # keys that are visited together
_XLA_CPU_BLOCK = 256
# Products with the vocabulary: logits; their gradients; and, where those are not taken in the forward pass, the logits again.
HEAD_PRODUCTS = {"SFT step": 3, "RL score": 1, "RL update": 4}


class Work(NamedTuple):
    """Of one run of a program."""

    flops: int | float  # executed, on all devices
    useful: int | float  # needed, on all devices
    traffic: int | float  # bytes that one device's memory reads and writes

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other)))

    def times(self, count: int | float) -> "Work":
        """Of so many runs."""
        return Work(*(count * value for value in self))


@dataclass(frozen=True)
class Shape:
    """How a model is computed, and on how many devices."""

    model: ModelConfig
    compute: Compute
    attention: str  # the backend that `compute.attention` stands for on the device
    batch_shards: int  # data x fsdp
    tensor: int
    platform: str = "gpu"  # cpu | gpu | tpu

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.batch_shards * self.tensor

    @property
    def layer_weights(self) -> int:
        """Weights of the matrix products of all layers."""
        return self.model.num_matmul_parameters - self.head_weights

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.model.vocab_size * self.model.hidden_size

    @property
    def channels(self) -> int:
        """Channels of all heads of all layers: two FLOPs each are a product of the scores' size, for one query and key."""
        return self.model.num_layers * self.model.num_heads * self.model.head_dim

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return jnp.dtype(self.compute.dtype).itemsize


def attended_keys(tokens: int, sample: int) -> float:
    """Keys that so many tokens see, in samples of so many tokens: half of each sample's square."""
    return tokens * (sample + 1) / 2


def visited_keys(shape: Shape, tokens: int, row: int, sample: int) -> float:
    """Keys that the attention backend computes with: whole blocks, and with splash and cuDNN all of a row before the query."""
    block = _XLA_CPU_BLOCK if shape.platform == "cpu" else _BLOCK[shape.attention]
    reach = min(sample, row) if shape.attention == "xla" else row
    block = min(block, row)
    blocks = math.ceil(reach / block)
    return tokens * block * (blocks + 1) / 2


def training_work(
    shape: Shape,
    *,
    program: str,
    tokens: int,
    row: int,
    sample: int,
    head_tokens: int | None = None,
    microbatches: int = 1,
) -> Work:
    """Forward and backward pass over packed rows; of `RL score` the forward pass alone.

    Args:
      program: a name of HEAD_PRODUCTS.
      tokens: positions of the rows, over all devices. row: positions of one row. sample: tokens of a segment.
      head_tokens: positions that the output head runs on; None: all.
      microbatches: that the tokens are divided into; each reads the weights again.
    """
    head_tokens = tokens if head_tokens is None else head_tokens
    forward_only = program == "RL score"
    visited, attended = visited_keys(shape, tokens, row, sample), attended_keys(tokens, sample)
    useful = training_flops(shape.model, tokens, head_tokens, round(attended))
    if forward_only:
        useful /= 3
    flops = _layer_flops(shape, tokens, visited, forward_only)
    flops += 2.0 * HEAD_PRODUCTS[program] * shape.head_weights * head_tokens
    return Work(
        flops,
        useful,
        _layer_traffic(shape, tokens, forward_only, microbatches) + _head_traffic(shape, head_tokens),
    )


def _layer_flops(shape: Shape, tokens: int, visited: int | float, forward_only: bool) -> float:
    weights, scores = 2.0 * shape.layer_weights * tokens, 2.0 * shape.channels * visited
    forward = weights + 2 * scores
    if forward_only:
        return forward
    backward = 2 * weights + _BACKWARD_PRODUCTS.get(shape.attention, 5) * scores
    return forward + backward + _again(shape, tokens, scores)


def _again(shape: Shape, tokens: int, scores: int | float) -> float:
    """What rematerialisation computes again: of a layer, everything that its backward pass reads, so not the last product."""
    model = shape.model
    last = model.num_layers * model.intermediate_size * model.hidden_size
    weights = 2.0 * (shape.layer_weights - last) * tokens
    return {
        "none": 0.0,
        "dots": 2 * scores,
        "attention": weights,
        "full": weights + 2 * scores,
    }[shape.compute.remat]


def _passes(shape: Shape, forward_only: bool) -> int:
    """How often a layer's activations are written and read, in forward passes."""
    return 1 if forward_only else 3 + (shape.compute.remat in ("full", "attention"))


def _layer_traffic(shape: Shape, tokens: int, forward_only: bool, microbatches: int = 1) -> float:
    model, tensor = shape.model, shape.tensor
    query, key = (n * model.head_dim / tensor for n in (model.num_heads, model.num_kv_heads))
    width, mlp = model.hidden_size, model.intermediate_size / tensor
    # Read and written by each product, rotation, norm and residual connection.
    attention = 2 * width + (query + 2 * key) + 2 * (query + key) + (2 * query + 2 * key) + query + 4 * width
    per_token = model.num_layers * (attention + 2 * width + 6 * mlp + 4 * width) * shape.itemsize
    passes = _passes(shape, forward_only)
    weights = passes * shape.layer_weights / tensor * shape.itemsize
    if not forward_only:
        weights += shape.layer_weights / tensor * 4  # the gradient is written
    return passes * per_token * tokens / shape.batch_shards + microbatches * weights


def _head_traffic(shape: Shape, tokens: int) -> float:
    local, vocab = tokens / shape.batch_shards, shape.model.vocab_size / shape.tensor
    blocks = math.ceil(local / 1024)
    # Logits are written once and read three times; the head is read and its gradient's accumulator read and written by block.
    return 4 * local * vocab * 4 + blocks * vocab * shape.model.hidden_size * (shape.itemsize + 8)


def training_wire(shape: Shape, *, program: str, tokens: int, fsdp: int, microbatches: int = 1) -> float:
    """Bytes that one device sends: weights gathered in the compute dtype, gradients scattered, the tensor axis' sums.

    Weights are gathered for the forward pass and again for the backward pass, which scatters their gradients.
    """
    model, forward_only = shape.model, program == "RL score"
    size = model.num_parameters / shape.tensor * shape.itemsize
    sent = microbatches * size * (fsdp - 1) / fsdp * (1 if forward_only else 3)
    # Two sums of hidden states a layer and pass, each sent around twice.
    sums = 4 * model.num_layers * tokens / shape.batch_shards * model.hidden_size * shape.itemsize
    return sent + _passes(shape, forward_only) * sums * (shape.tensor - 1) / shape.tensor


def optimizer_work(shape: Shape, parts: dict[str, int]) -> Work:
    """AdamW: reads parameters, moments and gradients, writes the first two. `parts`: bytes on a device, by name."""
    held = sum(parts.get(name, 0) for name in ("parameters", "moments", "masters"))
    return Work(0.0, 0.0, 2.0 * held + parts.get("gradients", 0))


def decode_work(shape: Shape, *, slots: int, length: int | float) -> Work:
    """One token in every slot of the native engine, whose sequences hold `length` positions on average."""
    model = shape.model
    flops = slots * (2.0 * model.num_matmul_parameters + 4.0 * shape.channels * length)
    weights = model.num_matmul_parameters / shape.tensor * shape.itemsize
    keys = 2 * model.num_layers * model.num_kv_heads * model.head_dim / shape.tensor
    return Work(flops, flops, weights + slots / shape.batch_shards * length * keys * shape.itemsize)


def prefill_work(shape: Shape, *, prompts: int, length: int) -> Work:
    """The layers over so many prompts; no head."""
    tokens = prompts * length
    flops = _layer_flops(shape, tokens, visited_keys(shape, tokens, length, length), forward_only=True)
    useful = 2.0 * shape.layer_weights * tokens + 4.0 * shape.channels * attended_keys(tokens, length)
    return Work(flops, useful, _layer_traffic(shape, tokens, forward_only=True))
