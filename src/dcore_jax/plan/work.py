"""Arithmetic and traffic of a recipe's programs, counted from shapes.

Two counts of FLOPs: `useful` is what the mathematics needs (six per weight and token, as MFU has it), `flops` is what the program
executes, with what it computes again. Traffic is that of a device's memory.

Shape letters in names: T tokens, D width, V vocabulary, L layers.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from dcore_jax.lora import LoraConfig
from dcore_jax.metrics import training_flops
from dcore_jax.models import Compute, ModelConfig
from dcore_jax.models.adapters import NF4_BLOCK

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
    lora: LoraConfig | None = None  # None: all parameters are trained

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
    def adapter_weights(self) -> int:
        """Weights of all adapters, which alone are trained; 0 where all parameters are."""
        if not self.lora:
            return 0
        ends = _ends(self.model)
        return self.model.num_layers * self.lora.rank * sum(sum(ends[name]) for name in self.lora.targets)

    @property
    def weight_bytes(self) -> float:
        """Bytes that a weight of a layer's matrix is read and sent in: nf4 has 4 bits, and a float32 scale for 64 of them."""
        return 0.5 + 4 / NF4_BLOCK if self.lora and self.lora.quantize == "nf4" else float(self.itemsize)

    @property
    def channels(self) -> int:
        """Channels of all heads of all layers: two FLOPs each are a product of the scores' size, for one query and key."""
        return self.model.num_layers * self.model.num_heads * self.model.head_dim

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return jnp.dtype(self.compute.dtype).itemsize


def _ends(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's matrices, by the names of LoraConfig.targets."""
    width, mlp = model.hidden_size, model.intermediate_size
    query, key = (n * model.head_dim for n in (model.num_heads, model.num_kv_heads))
    return {
        "q_proj": (width, query),
        "k_proj": (width, key),
        "v_proj": (width, key),
        "o_proj": (query, width),
        "gate_proj": (width, mlp),
        "up_proj": (width, mlp),
        "down_proj": (mlp, width),
    }


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
    useful = training_flops(
        shape.model,
        tokens,
        head_tokens,
        round(attended),
        adapter_parameters=shape.adapter_weights if shape.lora and not forward_only else None,
    )
    if forward_only:
        useful = useful / 3 + 2.0 * shape.adapter_weights * tokens
    flops = _layer_flops(shape, tokens, visited, forward_only)
    flops += 2.0 * _head_products(shape, program) * shape.head_weights * head_tokens
    return Work(
        flops,
        useful,
        _layer_traffic(shape, tokens, forward_only, microbatches) + _head_traffic(shape, head_tokens),
    )


def _head_products(shape: Shape, program: str) -> int:
    # A frozen head has no gradient.
    return HEAD_PRODUCTS[program] - (bool(shape.lora) and program != "RL score")


def _layer_flops(shape: Shape, tokens: int, visited: int | float, forward_only: bool) -> float:
    weights, scores = 2.0 * shape.layer_weights * tokens, 2.0 * shape.channels * visited
    adapters = 2.0 * shape.adapter_weights * tokens
    forward = weights + adapters + 2 * scores
    if forward_only:
        return forward
    # Of a frozen matrix the gradient of its inputs alone.
    backward = (
        (1 if shape.lora else 2) * weights
        + 2 * adapters
        + _BACKWARD_PRODUCTS.get(shape.attention, 5) * scores
    )
    return forward + backward + _again(shape, tokens, scores)


def _again(shape: Shape, tokens: int, scores: int | float) -> float:
    """What rematerialisation computes again: of a layer, everything that its backward pass reads, so not the last product."""
    model = shape.model
    last = model.num_layers * model.intermediate_size * model.hidden_size
    if shape.lora and "down_proj" in shape.lora.targets:
        last += (
            model.num_layers * shape.lora.rank * model.hidden_size
        )  # B's product; A's is read by the gradient of B
    weights = 2.0 * (shape.layer_weights + shape.adapter_weights - last) * tokens
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
    weights = passes * shape.layer_weights / tensor * shape.weight_bytes
    weights += passes * shape.adapter_weights / tensor * 4
    if not forward_only:
        weights += (
            (shape.adapter_weights if shape.lora else shape.layer_weights) / tensor * 4
        )  # the gradient is written
    return passes * per_token * tokens / shape.batch_shards + microbatches * weights


def _head_traffic(shape: Shape, tokens: int) -> float:
    local, vocab = tokens / shape.batch_shards, shape.model.vocab_size / shape.tensor
    blocks = math.ceil(local / 1024)
    # Logits are written once and read three times; the head is read and its gradient's accumulator read and written by block.
    each = shape.itemsize + (0 if shape.lora else 8)
    return 4 * local * vocab * 4 + blocks * vocab * shape.model.hidden_size * each


def training_wire(shape: Shape, *, program: str, tokens: int, fsdp: int, microbatches: int = 1) -> float:
    """Bytes that one device sends: weights gathered in the compute dtype, gradients scattered, the tensor axis' sums.

    Weights are gathered for the forward pass and again for the backward pass, which scatters their gradients.
    """
    model, forward_only = shape.model, program == "RL score"
    rest = (model.num_parameters - shape.layer_weights) * shape.itemsize
    base = (shape.layer_weights * shape.weight_bytes + rest) / shape.tensor
    adapters = shape.adapter_weights / shape.tensor * shape.itemsize
    times = (
        (1, 1) if forward_only else (2 if shape.lora else 3, 3)
    )  # a frozen base has no gradient to scatter
    sent = microbatches * (times[0] * base + times[1] * adapters) * (fsdp - 1) / fsdp
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
