"""cross_entropy against float64 NumPy: weights, skipped tokens, both choices of gradients."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.errors import UserError
from dcore_jax.kernels import cross_entropy, pallas, tiles

# (implementation, gradients)
WAYS = [("reference", "forward"), ("blocked", "forward"), ("blocked", "backward"), ("pallas", "backward")]


@pytest.fixture
def small_tiles(monkeypatch):
    """Blocks of 8 rows and tiles of 128 columns."""
    shrink(monkeypatch)


def shrink(patch):
    patch.setattr(tiles, "TOKEN_BLOCK", {"cpu": 8})
    patch.setattr(tiles, "MIN_ROWS", 8)
    patch.setattr(tiles, "ROW_ENTRIES", {"cpu": 1})
    patch.setattr(tiles, "TILE_ENTRIES", {"cpu": 8 * 128})
    patch.setattr(pallas, "TILES", {"cpu": pallas.Tile(8, 128, 16)})


def problem(tokens, width, vocab, share=0.4, seed=0, dtype=jnp.float32):
    """Random (hidden, unembed, targets, weights); `share` of the tokens carry weight."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(tokens, width)) * 2 / np.sqrt(width), dtype)
    weights = np.where(rng.random(tokens) < share, rng.random(tokens) + 0.5, 0)
    return (
        hidden,
        jnp.asarray(rng.normal(size=(width, vocab)), dtype),
        jnp.asarray(rng.integers(vocab, size=tokens), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


def numpy_truth(hidden, unembed, targets, weights):
    """(loss, d_hidden, d_unembed) in float64."""
    hidden, unembed, weights = (np.asarray(x, np.float64) for x in (hidden, unembed, weights))
    logits = hidden @ unembed
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(targets))
    slope = np.exp(log_p)
    slope[rows, targets] -= 1
    slope *= weights[:, None]
    return -np.sum(weights * log_p[rows, targets]), slope @ unembed.T, hidden.T @ slope


def run(hidden, unembed, targets, weights, way):
    """(loss, d_hidden, d_unembed), compiled."""
    implementation, gradients = way

    def loss(hidden, unembed):
        return cross_entropy(
            hidden, unembed, targets, weights, implementation=implementation, gradients=gradients
        )

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, unembed)
    return value, *grads


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_equal_float64_numpy(way, small_tiles):
    args = problem(45, 20, 5 * 128 + 9)
    loss, *grads = run(*args, way)
    truth = numpy_truth(*args)
    assert loss.dtype == jnp.float32
    assert abs(loss / truth[0] - 1) < 1e-6
    for grad, true in zip(grads, truth[1:]):
        assert np.abs(grad - true).max() < 1e-5 * np.abs(true).max()


@settings(max_examples=6, deadline=None)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 20),
    vocab=st.integers(1, 400),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_share_of_weights_equals_float64_numpy(tokens, width, vocab, share, seed):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        args = problem(tokens, width, vocab, share, seed)
        for found, true in zip(run(*args, ("blocked", "forward")), numpy_truth(*args)):
            np.testing.assert_allclose(found, true, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("way", WAYS)
def test_tokens_without_weight_add_exactly_nothing_whatever_they_hold(way, small_tiles):
    hidden, unembed, targets, weights = problem(30, 6, 200)
    unused = np.asarray(weights) == 0
    assert 0 < unused.sum() < 30
    spoiled = jnp.where(unused[:, None], jnp.nan, hidden)
    ignored = jnp.where(unused, -100, targets)
    loss, d_hidden, d_unembed = run(spoiled, unembed, ignored, weights, way)
    clean = run(hidden, unembed, targets, weights, way)
    assert loss == clean[0]
    assert not np.any(np.asarray(d_hidden)[unused])
    np.testing.assert_array_equal(d_unembed, clean[2])


@pytest.mark.parametrize("way", WAYS)
def test_no_weight_at_all_gives_exactly_zero(way, small_tiles):
    hidden, unembed, targets, weights = problem(11, 4, 150)
    for found in run(hidden, unembed, targets, jnp.zeros_like(weights), way):
        assert not np.any(found)


def test_blocks_without_weight_are_never_visited(small_tiles):
    # 64 tokens make 8 blocks of 8; 9 of them carry weight and fill two blocks. Every visit starts from empty statistics.
    hidden, unembed, targets, _ = problem(64, 4, 150)
    weights = jnp.zeros(64).at[jnp.arange(0, 63, 7)].set(1.0)
    visits = []
    original = tiles.empty

    def counted(tokens):
        jax.debug.callback(lambda: visits.append(tokens))
        return original(tokens)

    with pytest.MonkeyPatch.context() as patch:
        # By its name in sys.modules: the package's attribute of that name is the function.
        patch.setattr(importlib.import_module("dcore_jax.kernels.cross_entropy"), "empty", counted)
        jax.jit(cross_entropy)(hidden, unembed, targets, weights).block_until_ready()
        jax.effects_barrier()
    assert visits == [8, 8]


def test_the_loss_alone_equals_the_loss_with_gradients(small_tiles):
    args = problem(33, 7, 300)
    np.testing.assert_allclose(
        jax.jit(cross_entropy)(*args), run(*args, ("blocked", "forward"))[0], rtol=1e-6
    )


def test_gradients_scale_with_what_multiplies_the_loss(small_tiles):
    hidden, unembed, targets, weights = problem(12, 5, 140)
    once = jax.jit(jax.grad(cross_entropy))(hidden, unembed, targets, weights)
    half = jax.jit(jax.grad(lambda h: cross_entropy(h, unembed, targets, weights) / 2))(hidden)
    np.testing.assert_array_equal(half, once / 2)


def test_a_tied_unembedding_gets_the_gradient_of_its_transpose(small_tiles):
    hidden, unembed, targets, weights = problem(12, 5, 140)
    tied = jax.jit(jax.grad(lambda e: cross_entropy(hidden, e.T, targets, weights)))(unembed.T)
    np.testing.assert_allclose(tied.T, numpy_truth(hidden, unembed, targets, weights)[2], atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_gives_float32_loss_and_bfloat16_gradients(way, small_tiles):
    args = problem(25, 32, 300, dtype=jnp.bfloat16)
    loss, *grads = run(*args, way)
    truth = numpy_truth(*args)
    assert loss.dtype == jnp.float32
    assert abs(loss / truth[0] - 1) < 1e-5
    for grad, true in zip(grads, truth[1:]):
        assert grad.dtype == jnp.bfloat16
        assert np.abs(np.asarray(grad, np.float64) - true).max() < 2**-6 * np.abs(true).max()


@pytest.mark.parametrize("way", WAYS)
def test_a_weighted_target_outside_the_vocabulary_makes_the_loss_not_a_number(way, small_tiles):
    hidden, unembed, targets, weights = problem(9, 4, 150, share=1.0)
    assert np.isnan(run(hidden, unembed, targets.at[3].set(150), weights, way)[0])


def test_mistakes_are_named():
    args = problem(3, 2, 7)
    with pytest.raises(UserError, match="choose one of auto, reference, blocked, pallas"):
        cross_entropy(*args, implementation="fast")
    with pytest.raises(UserError, match="choose one of forward, backward"):
        cross_entropy(*args, gradients="both")


def test_temporary_memory_is_at_most_a_tenth_of_the_dense_path():
    shapes = (
        jax.ShapeDtypeStruct((4096, 256), jnp.float32),
        jax.ShapeDtypeStruct((256, 151_936), jnp.float32),
        jax.ShapeDtypeStruct((4096,), jnp.int32),
        jax.ShapeDtypeStruct((4096,), jnp.float32),
    )

    def temporary(implementation):
        def loss(*arrays):
            return cross_entropy(*arrays, implementation=implementation)

        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    dense = temporary("reference")
    assert dense > 4096 * 151_936 * 4
    assert temporary("blocked") <= dense / 10
