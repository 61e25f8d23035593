"""What libtpu's own compiler says of the programs for TPUs; `make aot` runs it in an environment of its own.

Compiled for these chips and run on none: memory, kernels and collectives, never speed or numbers. Programs of two layers have the
loop of the whole model; where memory is asserted the whole model is compiled.
"""

import dataclasses
import math
from functools import cache
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest

from dcore_jax import aot
from dcore_jax.aot.hlo import array_shapes, read_hlo
from dcore_jax.config import find_config, read_config
from dcore_jax.kernels import cross_entropy, logprobs_and_entropy
from dcore_jax.models import ModelConfig
from dcore_jax.models.adapters import NF4Kernel
from dcore_jax.models.attention import attend
from dcore_jax.models.decoder import REMAT_POLICIES
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig
from dcore_jax.target import compiling_for

pytestmark = [
    pytest.mark.aot,
    pytest.mark.timeout(3000),  # seconds on an idle machine
    pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu; run make aot"),
]

GIB = 2**30
MIB = 2**20
VOCAB = 151_936


@pytest.fixture(autouse=True, scope="module")
def _prepared():
    aot.prepare(8)


def compile_kernel(device: str, function, *shapes) -> tuple:
    """(kernels, text) of a function on one chip; shapes are (dtype, *sizes)."""
    chip = aot.device_of(device)
    where = jax.sharding.SingleDeviceSharding(aot.mesh_for(chip, "1").devices.flat[0])
    arguments = [jax.ShapeDtypeStruct(sizes, dtype, sharding=where) for dtype, *sizes in shapes]
    with compiling_for(chip.target):
        text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()
    return [kernel.name for kernel in read_hlo(text)[1]], text


def sft(preset: str) -> SFTConfig:
    return read_config(SFTConfig, find_config(preset))


def rl(preset: str = "rl_qwen3_8b", *, short: bool = False) -> RLConfig:
    config = read_config(RLConfig, find_config(preset))
    if not short:
        return config
    rollout = dataclasses.replace(config.rollout, max_prompt=1024, max_response=1024)
    engine = dataclasses.replace(config.engine, slots=16)
    return dataclasses.replace(config, rollout=rollout, engine=engine)


WIDTHS = {"8B": 4096, "narrow": 1024}


def two_layers(size: str) -> ModelConfig:
    """Qwen3-8B's first two layers, or the same at a quarter of their width: libtpu's time goes by the size of the code."""
    model = aot.model_of("8B", layers=2)
    if size == "8B":
        return model
    return dataclasses.replace(model, hidden_size=1024, intermediate_size=3072, num_heads=8, num_kv_heads=4)


@cache
def short_sft(device: str, mesh: str, remat: str = "full") -> aot.CompiledProgram:
    """The 8B step of two layers and short rows: the loops, kernels and collectives of the whole."""
    config = sft("sft_qwen3_8b")
    packing, compute = (
        dataclasses.replace(config.packing, length=2048),
        dataclasses.replace(config.compute, remat=remat),
    )
    config = dataclasses.replace(config, rows=8, accumulation=1, packing=packing, compute=compute)
    return aot.compile_for(device, mesh, aot.sft_program(config, two_layers("8B")))


@cache
def short_rl(device: str, mesh: str, program: str, size: str = "8B") -> aot.CompiledProgram:
    make = {"score": aot.rl_score_program, "update": aot.rl_update_program, "finish": aot.rl_finish_program}
    make |= {"prefill": aot.prefill_program, "decode": aot.decode_program}
    return aot.compile_for(device, mesh, make[program](rl(short=True), two_layers(size)))


def check_collectives(program: aot.CompiledProgram, layers: int = 2) -> None:
    """Nothing of weight's size travels in float32 on its way to a product, and no stack of layers is gathered as a whole."""
    for found in program.collectives:
        if found.op == "all-gather":
            assert found.dtype != "f32" or found.bytes < MIB, found
            assert not (len(found.shape) == 3 and found.shape[0] == layers and found.bytes > MIB), found


def check_no_logits(program: aot.CompiledProgram, tokens: int, width: int = 4096) -> None:
    """No array of every token and every entry of the vocabulary, whole or divided over the tensor axis."""
    columns = VOCAB // program.mesh["tensor"]
    rows = [
        math.prod(s[:-1]) for _, s in array_shapes(program.hlo) if s[-1:] == (columns,) and s[:-1] != (width,)
    ]
    assert max(rows, default=0) < tokens


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# The fixes, each seen to fail before it.


sizes = pytest.mark.parametrize("size", ["narrow", slow("8B")])


@sizes
def test_rls_update_compiles_for_tpus(size):
    """Before the barrier on a pass's gradient libtpu refused it: RET_CHECK failure in its while-loop passes."""
    found = short_rl("v5e", "fsdp=8", "update", size)
    assert found.aliased > 0.9 * found.output
    check_collectives(found)
    check_no_logits(found, 2048, WIDTHS[size])


@pytest.mark.parametrize(("policy", "forward"), [("full", 2), ("attention", 1)])
def test_the_attention_policy_runs_the_forward_kernel_once(policy, forward):
    """Before: 4 kernels, the forward one twice, with the policy as without."""

    def loss(q, k, v, ids):
        def layer(q, k, v):
            return attend(q, k, v, ids, implementation="splash") * 2

        return jax.checkpoint(layer, policy=REMAT_POLICIES[policy])(q, k, v).astype(jnp.float32).sum()

    arrays = [(jnp.bfloat16, 1, 1024, heads, 128) for heads in (32, 8, 8)]
    kernels, _ = compile_kernel("v5e", jax.value_and_grad(loss, (0, 1, 2)), *arrays, (jnp.int32, 1, 1024))
    found = [name for name in kernels if "splash_mha" in name]
    assert (len(found), sum("splash_mha_fwd" in name for name in found)) == (2 + forward, forward)


@pytest.mark.slow
def test_the_attention_policy_runs_the_forward_kernel_once_in_the_whole_step():
    """Before: 4 kernels, the forward one twice, with the policy as without."""
    kept, repeated = short_sft("v5p", "fsdp=8", "attention"), short_sft("v5p", "fsdp=8")
    assert (kept.kernel_count("splash_mha"), kept.kernel_count("splash_mha_fwd")) == (3, 1)
    assert (repeated.kernel_count("splash_mha"), repeated.kernel_count("splash_mha_fwd")) == (4, 2)


@sizes
def test_rls_head_is_gathered_in_the_compute_dtype(size):
    """Before: all-gather f32[4096, 151936], 2.3 GiB."""
    found = short_rl("v5e", "fsdp=8", "update", size)
    head = [c for c in found.collectives if VOCAB in c.shape and c.op == "all-gather" and c.bytes > 100 * MIB]
    assert head and all(c.dtype == "bf16" for c in head)


@sizes
def test_the_heads_gradient_is_never_whole_in_float32(size):
    """Before: f32[151936, 4096] and its transposed copy f32[4096, 151936], 4.6 GiB on every device."""
    shapes = array_shapes(short_rl("v5e", "fsdp=8", "update", size).hlo)
    assert not {("f32", (VOCAB, WIDTHS[size])), ("f32", (WIDTHS[size], VOCAB))} & shapes


@pytest.mark.parametrize("width", [slow(4096), 8192, slow(16384)])
def test_pallas_tiles_fit_a_chips_vector_memory(width):
    """Before: refused at 8,192 in float32, 'Ran out of memory in memory space vmem'."""

    def loss(hidden, unembed, targets):
        return logprobs_and_entropy(hidden, unembed, targets, implementation="pallas")[0].sum()

    arrays = (jnp.float32, 512, width), (jnp.float32, width, 2048), (jnp.int32, 512)
    kernels, _ = compile_kernel("v5e", jax.grad(loss, (0, 1)), *arrays)
    assert len(kernels) == 2


# Every kernel and its gradient.


@pytest.mark.parametrize("device", [slow("v5p"), "v5e", slow("v6e")])
@pytest.mark.parametrize(("heads", "dtype"), [(32, "bfloat16"), slow(40, "bfloat16"), slow(32, "float32")])
def test_splash_compiles_forward_and_backward(device, heads, dtype):
    def loss(q, k, v, ids):
        layer = jax.checkpoint(
            lambda q, k, v: attend(q, k, v, ids, implementation="splash"), policy=REMAT_POLICIES["full"]
        )
        return layer(q, k, v).astype(jnp.float32).sum()

    arrays = [(dtype, 1, 1024, n, 128) for n in (heads, 8, 8)]
    kernels, _ = compile_kernel(device, jax.grad(loss, (0, 1, 2)), *arrays, ("int32", 1, 1024))
    assert sum("splash_mha_d" in name for name in kernels) == 2


@pytest.mark.parametrize("device", [slow("v5p"), "v5e", slow("v6e")])
@pytest.mark.parametrize("name", ["blocked", "pallas"])
@pytest.mark.parametrize("width", [4096, slow(5120)])
def test_the_heads_kernels_compile_forward_and_backward(device, name, width):
    def score(hidden, unembed, targets):
        return logprobs_and_entropy(hidden, unembed, targets, implementation=name)[0].sum()

    def loss(hidden, unembed, targets, weights):
        return cross_entropy(hidden, unembed, targets, weights, implementation=name)

    arrays = (jnp.bfloat16, 2048, width), (jnp.bfloat16, width, VOCAB), (jnp.int32, 2048)
    kernels, text = compile_kernel(device, jax.grad(score, (0, 1)), *arrays)
    # One forward, two backward: the last block of the vocabulary is shorter. Interpreted Pallas would be a loop without a kernel.
    assert len(kernels) == (3 if name == "pallas" else 0)
    if name == "blocked":
        assert ("f32", (2048, VOCAB)) not in array_shapes(text)
        compile_kernel(device, jax.grad(loss, (0, 1)), *arrays, (jnp.float32, 2048))


def test_nf4s_product_compiles_forward_and_backward_without_a_table():
    """A gather from the table of 16 levels is slow on TPUs, and its matrix stays: the levels are a tree of selects."""

    def loss(x, codes, absmax):
        return NF4Kernel(codes, absmax).product(x, (None, None)).astype(jnp.float32).sum()

    arrays = (jnp.bfloat16, 1024, 1024), (jnp.uint8, 16, 32, 3072), (jnp.float32, 16, 3072)
    kernels, text = compile_kernel("v5e", jax.value_and_grad(loss), *arrays)
    assert not kernels and " gather(" not in text


# The recipes' programs.


@pytest.mark.slow
@pytest.mark.parametrize("device", ["v6e", "v5e"])
def test_the_sft_step_of_two_layers_with_a_tensor_axis(device):
    found = short_sft(device, "fsdp=4,tensor=2")
    assert found.kernel_count("splash_mha") == 4
    check_collectives(found)
    check_no_logits(found, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_loras_step_of_two_layers_has_no_gradient_of_the_head(quantize):
    config = read_config(SFTConfig, find_config("sft_lora_qwen3_1_7b"))
    packing = dataclasses.replace(config.packing, length=2048)
    lora = dataclasses.replace(config.lora, quantize=quantize)
    config = dataclasses.replace(config, packing=packing, rows=2, accumulation=2, lora=lora)
    found = aot.compile_for("v5e", "1", aot.sft_program(config, aot.model_of("1.7B", layers=2)))
    assert found.kernel_count("splash_mha") == 4
    check_no_logits(found, 2048, width=2048)
    assert not {("f32", (VOCAB, 2048)), ("f32", (2048, VOCAB))} & array_shapes(found.hlo)


@pytest.mark.parametrize(
    "program", [slow("update"), slow("score"), slow("finish"), slow("prefill"), "decode"]
)
def test_the_rl_programs_of_two_layers(program):
    found = short_rl("v6e", "fsdp=8", program, "narrow" if program == "decode" else "8B")
    if program not in (
        "prefill",
        "decode",
    ):  # the engine's weights are whole on every device: it gathers nothing
        check_collectives(found)
    if program in ("update", "score"):
        check_no_logits(found, 2048)
    if program == "decode":  # every device on its own: nothing is exchanged for a token but its outcome
        assert all(c.bytes < MIB for c in found.collectives)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "device", "mesh"),
    [("sft_qwen3_8b_v6e8", "v6e", "fsdp=8"), ("sft_qwen3_8b_v5e16", "v5e", "fsdp=16")],
)
def test_a_preset_fits_the_chips_that_it_was_planned_for(preset, device, mesh):
    """Before: refused on 8 x v6e, 32.9 GiB of 31.25."""
    found = aot.compile_for(device, mesh, aot.sft_program(sft(preset)))
    assert found.total <= found.device.usable
    assert not {("f32", (VOCAB, 4096)), ("f32", (4096, VOCAB))} & array_shapes(found.hlo)
    # Forward, forward again in the backward pass, and two backward kernels, in one loop over the layers.
    assert found.kernel_count("splash_mha") == 4
    check_collectives(found, layers=36)
    check_no_logits(found, 16384)
