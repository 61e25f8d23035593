"""logprobs_and_entropy against float64 NumPy: values, gradients, odd shapes, hard numbers, memory."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.errors import UserError
from dcore_jax.kernels import logprobs_and_entropy, pallas, tiles

IMPLEMENTATIONS = ("reference", "blocked", "pallas")
QWEN_VOCAB = 151_936


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 8 tokens and 128 columns, so that small arrays take many blocks and ragged ends."""
    shrink(monkeypatch)


def shrink(patch):
    patch.setattr(tiles, "TOKEN_BLOCK", {"cpu": 8})
    patch.setattr(tiles, "TILE_ENTRIES", {"cpu": 8 * 128})
    patch.setattr(pallas, "TILES", {"cpu": pallas.Tile(8, 128, 16)})


def compiled(hidden, unembed, targets, **options):
    return jax.jit(partial(logprobs_and_entropy, **options))(hidden, unembed, targets)


def problem(tokens, width, vocab, seed=0, dtype=jnp.float32):
    """Random (hidden, unembed, targets) whose logits have a standard deviation of about 3."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(tokens, width)) * 3 / np.sqrt(width), dtype)
    unembed = jnp.asarray(rng.normal(size=(width, vocab)), dtype)
    return hidden, unembed, jnp.asarray(rng.integers(vocab, size=tokens), jnp.int32)


def numpy_truth(hidden, unembed, targets, temperature, cotangent):
    """(logprobs, entropy, d_hidden, d_unembed) in float64."""
    hidden, unembed = np.asarray(hidden, np.float64), np.asarray(unembed, np.float64)
    logits = hidden @ unembed / temperature
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    rows = np.arange(len(targets))
    slope = -p
    slope[rows, targets] += 1
    slope *= np.asarray(cotangent, np.float64)[:, None] / temperature
    return log_p[rows, targets], -(p * log_p).sum(axis=1), slope @ unembed.T, hidden.T @ slope


def run(hidden, unembed, targets, temperature, cotangent, implementation):
    """(logprobs, entropy, d_hidden, d_unembed) of one implementation, compiled."""

    def value(hidden, unembed):
        return logprobs_and_entropy(
            hidden, unembed, targets, temperature=temperature, implementation=implementation
        )

    @jax.jit
    def both(hidden, unembed):
        (logprobs, entropy), pull = jax.vjp(value, hidden, unembed)
        return logprobs, entropy, *pull((cotangent, jnp.ones_like(entropy)))

    return both(hidden, unembed)


def relative(found, truth):
    """Largest error over the largest true value."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    assert found.shape == truth.shape
    return np.abs(found - truth).max() / np.abs(truth).max()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_float64_numpy_at_the_true_vocabulary(implementation):
    hidden, unembed, targets = problem(6, 24, QWEN_VOCAB)
    cotangent = jnp.asarray([1.0, -2.0, 0.5, 3.0, 0.0, 1.0])
    truth = numpy_truth(hidden, unembed, targets, 0.8, cotangent)
    logprobs, entropy, *grads = run(hidden, unembed, targets, 0.8, cotangent, implementation)
    assert logprobs.dtype == entropy.dtype == jnp.float32
    # Each token by itself, not only the largest.
    assert np.max(np.abs(np.asarray(logprobs) / truth[0] - 1)) < 1e-5
    assert np.max(np.abs(np.asarray(entropy) / truth[1] - 1)) < 1e-5
    for grad, true_grad in zip(grads, truth[2:]):
        assert relative(grad, true_grad) < 1e-5


@pytest.mark.parametrize("implementation", ["blocked", "pallas"])
def test_gradients_equal_the_dense_ones_at_the_true_vocabulary(implementation):
    args = *problem(5, 16, QWEN_VOCAB, seed=1), 1.0, jnp.ones(5)
    for grad, dense in zip(run(*args, implementation)[2:], run(*args, "reference")[2:]):
        assert relative(grad, dense) < 1e-4


@pytest.mark.parametrize("implementation", ["blocked", "pallas"])
@settings(max_examples=4, deadline=None)
@given(
    tokens=st.integers(1, 20),
    width=st.integers(1, 40),
    vocab=st.integers(1, 400),
    temperature=st.sampled_from([0.6, 1.0, 2.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_float64_numpy(implementation, tokens, width, vocab, temperature, seed):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        args = problem(tokens, width, vocab, seed)
        cotangent = jnp.asarray(np.random.default_rng(seed).normal(size=tokens), jnp.float32)
        truth = numpy_truth(*args, temperature, cotangent)
        for found, true in zip(run(*args, temperature, cotangent, implementation), truth):
            np.testing.assert_allclose(found, true, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_targets_at_block_borders_are_found(implementation, small_tiles):
    vocab = 5 * 128 + 3
    targets = jnp.asarray([0, 127, 128, 255, 256, 5 * 128 - 1, 5 * 128, vocab - 1, 1, 2], jnp.int32)
    hidden, unembed, _ = problem(len(targets), 12, vocab)
    truth = numpy_truth(hidden, unembed, targets, 1.0, np.ones(len(targets)))
    for found, true in zip(run(hidden, unembed, targets, 1.0, jnp.ones(len(targets)), implementation), truth):
        np.testing.assert_allclose(found, true, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_entropy_has_exactly_no_gradient(implementation, small_tiles):
    hidden, unembed, targets = problem(9, 8, 300)

    def entropy(hidden, unembed):
        return jnp.sum(logprobs_and_entropy(hidden, unembed, targets, implementation=implementation)[1])

    value, grads = jax.jit(jax.value_and_grad(entropy, (0, 1)))(hidden, unembed)
    assert value > 1
    for grad in grads:
        assert not np.any(grad)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_extreme_logits_stay_finite_and_right(implementation, small_tiles):
    # Logits are +-1e4: the token's own, its rival's, and everything else's.
    hidden = jnp.asarray([[1e4], [-1e4], [1e4], [0.0]], jnp.float32)
    unembed = jnp.asarray(np.where(np.arange(300) == 200, 1.0, -1.0)[None], jnp.float32)
    targets = jnp.asarray([200, 200, 7, 3], jnp.int32)
    logprobs, entropy, *grads = run(hidden, unembed, targets, 1.0, jnp.ones(4), implementation)
    np.testing.assert_allclose(logprobs, [0, -2e4 - np.log(299), -2e4, -np.log(300)], rtol=1e-6)
    np.testing.assert_allclose(entropy, [0, np.log(299), 0, np.log(300)], rtol=1e-5, atol=1e-6)
    assert all(np.all(np.isfinite(grad)) for grad in grads)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_a_common_offset_of_all_logits_changes_nothing(implementation, small_tiles):
    hidden, unembed, targets = problem(5, 6, 333)
    lifted = jnp.concatenate([hidden, jnp.full((5, 1), 64.0)], axis=1)
    row = jnp.full((1, 333), 64.0)
    plain = run(hidden, unembed, targets, 1.0, jnp.ones(5), implementation)
    moved = run(lifted, jnp.concatenate([unembed, row]), targets, 1.0, jnp.ones(5), implementation)
    # Adding 4096 rounds every logit to 2^-11.
    np.testing.assert_allclose(moved[0], plain[0], atol=1e-3)
    np.testing.assert_allclose(moved[1], plain[1], atol=1e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_share_the_probability(implementation, small_tiles):
    logprobs, entropy = compiled(
        jnp.ones((3, 4)), jnp.zeros((4, 500)), jnp.asarray([0, 250, 499]), implementation=implementation
    )
    np.testing.assert_allclose(logprobs, -np.log(500), rtol=1e-6)
    np.testing.assert_allclose(entropy, np.log(500), rtol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_operands_are_accumulated_in_float32(implementation, small_tiles):
    hidden, unembed, targets = problem(10, 64, 700, dtype=jnp.bfloat16)
    cotangent = jnp.linspace(-1, 1, 10)
    truth = numpy_truth(hidden, unembed, targets, 1.0, cotangent)
    logprobs, entropy, *grads = run(hidden, unembed, targets, 1.0, cotangent, implementation)
    assert relative(logprobs, truth[0]) < 1e-5
    assert relative(entropy, truth[1]) < 1e-5
    for grad, true in zip(grads, truth[2:]):
        assert grad.dtype == jnp.bfloat16
        assert relative(grad, true) < 2**-7


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_traced_temperature_equals_a_number(implementation, small_tiles):
    args = problem(4, 8, 200)
    call = partial(logprobs_and_entropy, *args, implementation=implementation)
    traced, static, plain = jax.jit(lambda t: (call(temperature=t), call(temperature=0.7), call()))(0.7)
    for a, b in zip(traced, static):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not np.allclose(traced[0], plain[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_target_outside_the_vocabulary_is_not_a_number_and_spoils_no_other(implementation, small_tiles):
    hidden, unembed, _ = problem(3, 4, 200)
    targets = jnp.asarray([-1, 5, 200])
    logprobs, entropy = compiled(hidden, unembed, targets, implementation=implementation)
    assert np.isnan(logprobs).tolist() == [True, False, True]
    assert np.all(np.isfinite(entropy))


def test_mistakes_are_named():
    args = problem(2, 3, 5)
    with pytest.raises(
        UserError, match=r"'dense' is unknown; choose one of auto, reference, blocked, pallas"
    ):
        logprobs_and_entropy(*args, implementation="dense")
    with pytest.raises(UserError, match="temperature=0"):
        logprobs_and_entropy(*args, temperature=0.0)


def test_temporary_memory_is_at_most_a_tenth_of_the_dense_path():
    shapes = (
        jax.ShapeDtypeStruct((4096, 256), jnp.float32),
        jax.ShapeDtypeStruct((256, QWEN_VOCAB), jnp.float32),
        jax.ShapeDtypeStruct((4096,), jnp.int32),
    )

    def temporary(implementation):
        def loss(hidden, unembed, targets):
            logprobs, entropy = logprobs_and_entropy(hidden, unembed, targets, implementation=implementation)
            return jnp.sum(logprobs), entropy

        program = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    dense = temporary("reference")
    assert dense > 4096 * QWEN_VOCAB * 4
    assert temporary("blocked") <= dense / 10


def test_kernels_import_neither_torch_nor_grain_nor_vllm():
    code = "import sys, dcore_jax.kernels; print([m for m in ('torch', 'grain', 'vllm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
