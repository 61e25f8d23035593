"""What XLA's GPU compiler says of the programs for NVIDIA GPUs; `make aot-cuda` runs it in an environment of its own (5.9 GB).

Compiled for these cards and run on none: cuDNN builds its graphs and XLA tunes its kernels only on a card.
"""

import dataclasses
from functools import cache
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest

from dcore_jax import aot
from dcore_jax.aot.hlo import array_shapes, read_hlo
from dcore_jax.config import find_config, read_config
from dcore_jax.kernels import cross_entropy, logprobs_and_entropy
from dcore_jax.models.attention import attend
from dcore_jax.models.decoder import REMAT_POLICIES
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig
from dcore_jax.target import compiling_for

pytestmark = [
    pytest.mark.aot,
    pytest.mark.timeout(3000),  # seconds on an idle machine
    pytest.mark.skipif(
        find_spec("jax_cuda12_plugin") is None, reason="needs CUDA's wheels; run make aot-cuda"
    ),
]

GIB, MIB, VOCAB = 2**30, 2**20, 151_936


@pytest.fixture(autouse=True, scope="module")
def _prepared():
    aot.prepare(8)


def compile_kernel(device: str, function, *shapes) -> tuple[list[str], str]:
    """(kernels, text) of a function on one card; shapes are (dtype, *sizes)."""
    card = aot.device_of(device)
    where = jax.sharding.SingleDeviceSharding(aot.mesh_for(card, "1").devices.flat[0])
    arguments = [jax.ShapeDtypeStruct(sizes, dtype, sharding=where) for dtype, *sizes in shapes]
    with compiling_for(card.target):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    text = lowered.compile().as_text()
    return [kernel.name for kernel in read_hlo(text)[1]], text


@cache
def sft_step(device: str, preset: str, layers: int | None = None) -> aot.CompiledProgram:
    """The SFT step of a preset on eight cards, on its own mesh; with few layers also of short rows."""
    config = read_config(SFTConfig, find_config(preset))
    if layers:
        config = dataclasses.replace(config, packing=dataclasses.replace(config.packing, length=2048))
    program = aot.sft_program(config, aot.model_of(config.model, layers=layers))
    return aot.compile_for(device, config.mesh or "fsdp=8", program)


@pytest.mark.parametrize("device", ["h100", "a100"])
@pytest.mark.parametrize(("policy", "forward"), [("full", 2), ("attention", 1)])
def test_the_attention_policy_runs_cudnns_forward_once(device, policy, forward):
    """Before: 2 forward kernels and 1 backward kernel with the policy as without."""

    def loss(q, k, v, ids):
        def layer(q, k, v):
            return attend(q, k, v, ids, implementation="cudnn") * 2

        return jax.checkpoint(layer, policy=REMAT_POLICIES[policy])(q, k, v).astype(jnp.float32).sum()

    arrays = [(jnp.bfloat16, 1, 2048, heads, 128) for heads in (32, 8, 8)]
    kernels, _ = compile_kernel(device, jax.value_and_grad(loss, (0, 1, 2)), *arrays, (jnp.int32, 1, 2048))
    found = [name for name in kernels if "fmha" in name]
    assert (sum("Backward" not in x for x in found), sum("Backward" in x for x in found)) == (forward, 1)


@pytest.mark.parametrize("device", ["h100", "a100"])
@pytest.mark.parametrize("name", ["blocked", "pallas"])
def test_the_heads_kernels_compile_forward_and_backward(device, name):
    def score(hidden, unembed, targets):
        return logprobs_and_entropy(hidden, unembed, targets, implementation=name)[0].sum()

    def loss(hidden, unembed, targets, weights):
        return cross_entropy(hidden, unembed, targets, weights, implementation=name)

    arrays = (jnp.bfloat16, 8192, 4096), (jnp.bfloat16, 4096, VOCAB), (jnp.int32, 8192)
    kernels, text = compile_kernel(device, jax.grad(score, (0, 1)), *arrays)
    # One forward, two backward: the last block of the vocabulary is shorter. Interpreted Pallas would be a loop without a kernel.
    assert kernels.count("pallas_call") == (3 if name == "pallas" else 0)
    if name == "blocked":
        assert ("f32", (8192, VOCAB)) not in array_shapes(text)
        compile_kernel(device, jax.grad(loss, (0, 1)), *arrays, (jnp.float32, 8192))


@pytest.mark.parametrize("device", ["h100", "a100"])
def test_weights_travel_in_the_compute_dtype_layer_by_layer(device):
    found = sft_step(device, "sft_qwen3_8b", 2)
    for one in found.collectives:
        if one.op == "all-gather":
            assert one.dtype != "f32" or one.bytes < MIB, one
            assert not (len(one.shape) == 3 and one.shape[0] == 2 and one.bytes > MIB), one
    assert not {("f32", (VOCAB, 4096)), ("f32", (4096, VOCAB))} & array_shapes(found.hlo)


@pytest.mark.parametrize(("preset", "most"), [("sft_qwen3_8b", 30.0), ("sft_qwen3_14b", 45.0)])
def test_the_papers_sft_step_on_eight_h100(preset, most):
    """Before: 35.3 and 55.3 GiB."""
    assert sft_step("h100", preset).peak <= most * GIB


def test_rls_update_fits_beside_what_the_run_holds():
    """Before: 42 GiB of an idle engine lay beside it; with them it did not fit."""
    config = read_config(RLConfig, find_config("rl_qwen3_8b"))
    found = aot.compile_for("h100", "fsdp=8", aot.rl_update_program(config))
    assert found.total <= found.device.usable
