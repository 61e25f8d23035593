"""The Pallas kernels, lowered for GPU and TPU without either, and their tile sizes."""

import jax
import jax.numpy as jnp
import pytest

from dcore_jax.kernels import logprobs_and_entropy, pallas
from dcore_jax.target import Target, compiling_for

# Sizes that the tiles divide, and sizes that they do not.
SHAPES = [(512, 256, 1024), (200, 300, 1000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("platform", "backend", "call"), [("cuda", "gpu", "xla.gpu.triton"), ("tpu", "tpu", "tpu_custom_call")]
)
def test_one_kernel_source_lowers_for_gpu_and_tpu_forward_and_backward(platform, backend, call, dtype, shape):
    tokens, width, vocab = shape

    def loss(hidden, unembed, targets):
        return jnp.sum(logprobs_and_entropy(hidden, unembed, targets, implementation="pallas")[0])

    shapes = (
        jax.ShapeDtypeStruct((tokens, width), dtype),
        jax.ShapeDtypeStruct((width, vocab), dtype),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    with compiling_for(Target(backend)):
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*shapes)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    # One kernel in the forward pass, one in the backward pass, each by the platform's own compiler.
    assert text.count(call) == 2


def test_the_true_vocabulary_needs_no_padded_copy_of_the_unembedding():
    real = [pallas.TILES[machine] for machine in ("gpu", "tpu")]
    assert all(vocab % tile.vocab == 0 for tile in real for vocab in (151_936, 128_256))


def test_tiles_suit_their_machines():
    # Triton wants powers of two; a TPU wants multiples of 128 lanes.
    assert all(size & (size - 1) == 0 for size in pallas.TILES["gpu"])
    assert all(size % 128 == 0 for size in pallas.TILES["tpu"])
