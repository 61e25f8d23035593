"""Under a mesh of eight devices both kernels give what one device gives, and gradients are sharded like the parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dcore_jax.errors import UserError
from dcore_jax.kernels import cross_entropy, logprobs_and_entropy, pallas, tiles
from dcore_jax.mesh import BATCH_AXES

AXES = ("data", "fsdp", "tensor")
WIDTH = 16
# 96 columns divide over any of these tensor axes, 97 over none: then that axis splits tokens.
MESHES = [((1, 8, 1), 96), ((1, 1, 8), 96), ((1, 1, 8), 97), ((2, 2, 2), 96), ((2, 2, 2), 97)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "MIN_ROWS", 2)
    monkeypatch.setattr(tiles, "ROW_ENTRIES", {"cpu": 1})
    monkeypatch.setattr(tiles, "TILE_ENTRIES", {"cpu": 128})
    monkeypatch.setattr(pallas, "TILES", {"cpu": pallas.Tile(8, 128, 16)})


def problem(tokens, vocab):
    rng = np.random.default_rng(tokens)
    return (
        jnp.asarray(rng.normal(size=(tokens, WIDTH)), jnp.float32),
        jnp.asarray(rng.normal(size=(WIDTH, vocab)), jnp.float32),
        jnp.asarray(rng.integers(vocab, size=tokens), jnp.int32),
        # Weights crowd at one end, so that devices have different numbers of blocks to visit.
        jnp.asarray(np.where(np.arange(tokens) < tokens // 3, 1.5, 0), jnp.float32),
    )


def score(hidden, unembed, targets, weights, implementation):
    logprobs, entropy = logprobs_and_entropy(
        hidden, unembed, targets, temperature=0.7, implementation=implementation
    )
    return jnp.sum(weights * logprobs), entropy


def loss(hidden, unembed, targets, weights, implementation):
    return cross_entropy(hidden, unembed, targets, weights, implementation=implementation), jnp.zeros(())


def value_and_grads(function, arrays, implementation):
    grad = jax.value_and_grad(function, (0, 1), has_aux=True)
    return jax.jit(lambda *a: grad(*a, implementation))(*arrays)


def mesh_of(shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def place(mesh, arrays):
    tokens, (_, fsdp, tensor) = arrays[0].shape[0], mesh.axis_sizes
    vocab = arrays[1].shape[1]
    rows = P(BATCH_AXES) if tokens % (mesh.axis_sizes[0] * fsdp) == 0 else P()
    specs = (rows, P("fsdp", "tensor" if vocab % tensor == 0 else None), rows, rows)
    return tuple(jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs))


CASES = [(f, "blocked", *mesh) for f in (score, loss) for mesh in MESHES] + [(score, "pallas", (2, 2, 2), 96)]


@pytest.mark.parametrize(("function", "implementation", "shape", "vocab"), CASES)
def test_a_mesh_gives_the_value_and_gradients_of_one_device(function, implementation, shape, vocab):
    arrays = problem(48, vocab)
    alone = value_and_grads(function, arrays, "reference")
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        spread = value_and_grads(function, place(mesh, arrays), implementation)
    for one, eight in zip(jax.tree.leaves(alone), jax.tree.leaves(spread)):
        np.testing.assert_allclose(eight, one, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("function", [score, loss])
def test_the_unembeddings_gradient_is_sharded_like_the_parameter(function):
    mesh = mesh_of((2, 2, 2))
    with jax.set_mesh(mesh):
        _, (_, d_unembed) = value_and_grads(function, place(mesh, problem(48, 96)), "blocked")
    assert d_unembed.sharding.spec == P("fsdp", "tensor")
    assert d_unembed.addressable_shards[0].data.shape == (WIDTH // 2, 96 // 2)


@pytest.mark.parametrize("function", [score, loss])
def test_a_number_of_tokens_that_the_mesh_does_not_divide_is_padded(function):
    arrays = problem(13, 96)
    alone = value_and_grads(function, arrays, "reference")
    mesh = mesh_of((2, 2, 2))
    with jax.set_mesh(mesh):
        spread = value_and_grads(function, place(mesh, arrays), "blocked")
    for one, eight in zip(jax.tree.leaves(alone), jax.tree.leaves(spread)):
        np.testing.assert_allclose(eight, one, rtol=1e-5, atol=2e-5)


def test_a_scan_of_rematerialised_microbatches_works_under_a_mesh():
    arrays = problem(48, 96)

    def total(unembed, hidden, targets, weights):
        @jax.checkpoint
        def one(sum_so_far, part):
            return sum_so_far + cross_entropy(part[0], unembed, *part[1:]), None

        parts = jax.tree.map(lambda x: x.reshape(3, 16, *x.shape[1:]), (hidden, targets, weights))
        return jax.lax.scan(one, jnp.float32(0), parts)[0]

    hidden, unembed, targets, weights = arrays
    want, grad = jax.jit(jax.value_and_grad(cross_entropy, 1))(*arrays)
    mesh = mesh_of((2, 2, 2))
    with jax.set_mesh(mesh):
        hidden, unembed, targets, weights = place(mesh, arrays)
        got, spread = jax.jit(jax.value_and_grad(total))(unembed, hidden, targets, weights)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(spread, grad, rtol=1e-5, atol=1e-5)


def test_explicit_axes_are_refused_by_name():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh), pytest.raises(UserError, match="'data' is Explicit"):
        cross_entropy(*problem(8, 96))


@pytest.mark.parametrize("function", [score, loss])
def test_no_device_ever_holds_its_share_of_dense_logits(function):
    mesh = mesh_of((2, 2, 2))
    with jax.set_mesh(mesh):
        placed = place(mesh, problem(512, 4096))
        gradient = jax.grad(partial(function, implementation="blocked"), (0, 1), has_aux=True)
        program = jax.jit(gradient).lower(*placed).compile()
    assert program.memory_analysis().temp_size_in_bytes < 128 * 2048 * 4
