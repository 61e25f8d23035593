"""LoRA and QLoRA: what is computed, what is trained, what stays, and where it lies."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from conftest import torch_model
from dcore_jax import UserError
from dcore_jax.lora import LoraConfig, merged_decoder
from dcore_jax.mesh import make_mesh
from dcore_jax.models import Compute
from dcore_jax.models.adapters import dequantized
from dcore_jax.sft.step import Batch, make_train_step
from dcore_jax.training import ComputeConfig, OptimizerConfig, TrainSetup
from dcore_jax.training.state import whole_model
from dcore_jax.weights import load_decoder

MESHES = ("1", "8", "data=2,fsdp=2,tensor=2")
LORA = LoraConfig(rank=4, alpha=8.0)
NF4 = replace(LORA, quantize="nf4")
TOKENS = np.random.default_rng(0).integers(0, 128, (8, 24)).astype(np.int32)

# QLoRA (2305.14314), appendix E; the same numbers stand in bitsandbytes' functional.py.
LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Widths that blocks of 64 divide."""
    path = tmp_path_factory.mktemp("lora") / "model"
    widths = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    torch_model("qwen3", head_dim=32, num_key_value_heads=2, **widths).save_pretrained(path)
    return path


def setup_of(folder, lora, mesh="1", **compute):
    return TrainSetup(
        folder,
        make_mesh(mesh),
        compute=ComputeConfig(**{"dtype": "float32", "remat": "none", **compute}),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=0.0, weight_decay=0.1),
        updates=10,
        seed=3,
        lora=lora,
    )


def batch(rows=TOKENS):
    shape = (2, len(rows) // 2, rows.shape[1])
    positions = np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape)
    ones = np.ones(shape, bool)
    return Batch(rows.reshape(shape), positions, np.ones(shape, np.int32), ones, ones)


@nnx.jit
def logits_of(model):
    return model(TOKENS)


def numpy_state(state):
    return {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}


def with_random_b(adapters, seed=1):
    """Adapters that change the model, as they do after training."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), adapters)


def rounded_by_hand(weight):
    """A Hugging Face matrix after nf4, as bitsandbytes rounds: blocks of 64 in row-major order, the nearest of 16 levels."""
    blocks = weight.astype(np.float32).reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    between = (LEVELS[1:] + LEVELS[:-1]) / 2  # the thresholds of a nearest-level search
    codes = np.searchsorted(between.astype(np.float32), (blocks / absmax).ravel())
    return (LEVELS[codes].reshape(blocks.shape) * absmax).reshape(weight.shape)


@pytest.mark.parametrize("mesh", MESHES)
def test_nf4_rounds_every_matrix_as_bitsandbytes_does_on_any_mesh(folder, mesh):
    frozen = numpy_state(setup_of(folder, NF4, mesh).load_frozen())
    tensors = load_file(folder / "model.safetensors")
    checked = 0
    for path, codes in frozen.items():
        if path[-1] != "codes":
            continue
        assert codes.dtype == np.uint8
        found = np.asarray(dequantized(jnp.asarray(codes), jnp.asarray(frozen[*path[:-1], "absmax"])))
        name = {"attention": "self_attn", "mlp": "mlp"}[path[1]]
        for layer, ours in enumerate(found):
            theirs = rounded_by_hand(tensors[f"model.layers.{layer}.{name}.{path[2]}_proj.weight"])
            np.testing.assert_array_equal(ours.T, theirs)
            checked += ours.size
        # Half a byte a weight, and four bytes for 64 of them.
        assert codes.nbytes * 2 == found.size and frozen[*path[:-1], "absmax"].nbytes * 16 == found.size
    assert checked == 2 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 192)
    assert frozen["embedding",].dtype == np.float32


def test_a_matrix_that_blocks_do_not_divide_is_refused_by_name(checkpoints):
    with pytest.raises(UserError, match=r"nf4 stores blocks of 64 inputs, and q_proj has 48; leave"):
        setup_of(checkpoints["qwen3_tied"], NF4)


@pytest.mark.parametrize("lora", [LORA, NF4], ids=["lora", "qlora"])
def test_new_adapters_change_nothing_and_merged_ones_equal_base_plus_adapters(folder, lora):
    setup = setup_of(folder, lora)
    frozen, new = setup.load_frozen(), setup.load_params()
    base = load_decoder(folder)
    logits = logits_of(nnx.merge(setup.graph, new, frozen))
    if lora.quantize == "none":
        np.testing.assert_array_equal(logits, logits_of(base))
    moved = nnx.merge(setup.graph, with_random_b(new), frozen)
    theirs = logits_of(moved)
    assert float(jnp.abs(theirs - logits).max()) > 0.1
    merged = merged_decoder(moved)
    assert numpy_state(nnx.state(merged)).keys() == numpy_state(nnx.state(base)).keys()
    np.testing.assert_allclose(logits_of(merged), theirs, atol=2e-5)


def test_an_adapter_gets_the_gradient_that_full_rank_training_gives_its_matrix(folder):
    """With dW = scale * A @ dB: the gradient of B is scale * A^T G, and a step of B moves W against G, the full gradient."""
    lora = LoraConfig(rank=16, alpha=8.0)
    setup = setup_of(folder, lora)
    frozen, new = setup.load_frozen(), setup.load_params()

    def loss(model):
        logprobs = jax.nn.log_softmax(model(TOKENS)[:, :-1])
        return -jnp.take_along_axis(logprobs, jnp.asarray(TOKENS)[:, 1:, None], axis=-1).mean()

    ours = numpy_state(jax.jit(jax.grad(lambda p: loss(nnx.merge(setup.graph, p, frozen))))(new))
    graph, params = nnx.split(load_decoder(folder))
    full = numpy_state(jax.jit(jax.grad(lambda p: loss(nnx.merge(graph, p))))(params))
    adapters = numpy_state(new)
    assert len(ours) == 14
    for path, gradient in ours.items():
        if path[-1] == "a":
            assert not gradient.any()  # B is zero
            continue
        a, g = adapters[*path[:-1], "a"], full[*path[:-2], "kernel"]
        expected = lora.scale * np.einsum("lir,lio->lro", a, g)
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
        step = -np.einsum("lir,lro->lio", a, gradient)
        cosine = -(step * g).sum() / np.linalg.norm(step) / np.linalg.norm(g)
        assert cosine > 0.2, path


@pytest.mark.parametrize(
    ("lora", "meshes"), [(LORA, MESHES[:2]), (NF4, (MESHES[0], MESHES[2]))], ids=["lora", "qlora"]
)
def test_steps_on_meshes_of_eight_equal_one_device_and_never_change_the_base(folder, lora, meshes):
    found = {}
    for mesh in meshes:
        setup = setup_of(folder, lora, mesh)
        with jax.set_mesh(setup.mesh):
            frozen = setup.load_frozen()
            before = numpy_state(frozen)
            state = setup.initial_state(setup.load_params())
            adapters = sum(x.nbytes for x in jax.tree.leaves(state.params))
            moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
            assert sum(x.nbytes for x in moments) == 2 * adapters and adapters == 4 * setup.trained_parameters
            step = setup.compile_step(make_train_step(setup.graph, setup.optimizer), "the step")
            losses = []
            for _ in range(4):
                state, metrics = step(state, batch(), frozen)
                losses.append(float(metrics.loss))
            after = numpy_state(frozen)
        for path, value in before.items():
            assert value.tobytes() == after[path].tobytes(), path
        for leaf, placement in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(setup.state_sharding.params), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(placement, leaf.ndim)
        found[mesh] = losses, numpy_state(state.params)
    losses, adapters = found["1"]
    assert losses[-1] < losses[0] - 0.3
    for others, theirs in found.values():
        np.testing.assert_allclose(others, losses, rtol=1e-5)
        for path, value in adapters.items():
            np.testing.assert_allclose(theirs[path], value, atol=2e-3, err_msg=str(path))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_no_gradient_of_an_adapter(folder, remat):
    def gradient(remat):
        setup = setup_of(folder, NF4, remat=remat)
        frozen, new = setup.load_frozen(), with_random_b(setup.load_params())
        loss = lambda p: jnp.square(nnx.merge(setup.graph, p, frozen).hidden(TOKENS)).mean()  # noqa: E731
        return jax.jit(jax.grad(loss))(new)

    for a, b in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient("none")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)


def test_a_frozen_base_in_bfloat16_computes_what_a_float32_one_does(folder):
    half = setup_of(folder, LORA, dtype="bfloat16")
    params = whole_model(half.load_params(), half.load_frozen())
    dtypes = {path[-1]: leaf.get_value().dtype.name for path, leaf in nnx.to_flat_state(params)}
    assert dtypes == {
        "embedding": "bfloat16",
        "head": "bfloat16",
        "kernel": "bfloat16",
        "scale": "float32",
    } | dict.fromkeys("ab", "float32")
    theirs = load_decoder(folder, compute=Compute(dtype=jnp.bfloat16))
    np.testing.assert_array_equal(logits_of(nnx.merge(half.graph, params)), logits_of(theirs))


def test_targets_choose_the_matrices_and_mistakes_take_one_line(folder):
    setup = setup_of(folder, replace(LORA, targets=("q_proj", "down_proj")))
    assert {path[2] for path in numpy_state(setup.load_params())} == {"q", "down"}
    assert setup.trained_parameters == 2 * 4 * (128 + 128 + 192 + 128)
    assert "rank 4, alpha 8 on 2 matrices a layer: 4,608 parameters are trained" in setup.lora_line()
    assert setup_of(folder, LoraConfig()).lora_line() == ""
    for fields, message in (
        ({"rank": -1}, r"lora.rank=-1 must be at least 0"),
        ({"rank": 4, "alpha": 0.0}, r"lora.alpha=0.0 must be above 0"),
        ({"rank": 4, "targets": ()}, r"lora.targets=\[\] should name"),
        ({"quantize": "nf4"}, r"no adapter to train; give --lora.rank 16"),
    ):
        with pytest.raises(UserError, match=message):
            LoraConfig(**fields)
