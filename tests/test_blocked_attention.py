"""Attention by blocks against the dense formula, and the blocks it must not touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dcore_jax.models.blocked_attention import blocked_attention
from dcore_jax.models.decoder import REMAT_POLICIES

# Two rows with borders in different places, the second with padding behind; no length is a multiple of the block.
IDS = jnp.asarray(
    np.stack([np.repeat([1, 2, 3], [30, 27, 13]), np.repeat([1, 2, 0], [9, 50, 11])]), jnp.int32
)


def inputs(heads, kv_heads, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(2, 70, h, 8)), jnp.float32) for h in (heads, kv_heads, kv_heads)]


def dense(q, k, v, ids):
    """The formula itself, on the whole matrix of scores."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    seen = (ids[:, None, :, None] == ids[:, None, None, :]) & np.tri(ids.shape[1], dtype=bool)
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)


@pytest.mark.parametrize("block", [7, 16, 128])
@pytest.mark.parametrize("heads", [(4, 1), (4, 2), (2, 2)])
def test_values_and_gradients_equal_the_dense_formula(heads, block):
    arrays = inputs(*heads)

    def both(attention):
        out, pull = jax.vjp(attention, *arrays)
        return out, pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    actual = jax.jit(lambda: both(lambda q, k, v: blocked_attention(q, k, v, IDS, block=block)))()
    expected = jax.jit(lambda: both(lambda q, k, v: dense(q, k, v, IDS)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


def test_bf16_is_as_near_to_float64_as_torch_where_the_scale_is_no_power_of_two():
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 256, 2, 128)), jnp.bfloat16) for _ in range(3))
    wide = [np.asarray(x, np.float64)[0].swapaxes(0, 1) for x in (q, k, v)]
    scores = np.where(np.tri(256, dtype=bool), wide[0] @ wide[1].swapaxes(1, 2) / np.sqrt(128), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights @ wide[2] / weights.sum(-1, keepdims=True)

    def error(out):
        return np.sqrt(np.mean((np.asarray(out, np.float64) - exact) ** 2))

    ours = jax.jit(lambda *x: blocked_attention(*x, jnp.ones((1, 256), jnp.int32), block=64))(q, k, v)
    halves = [torch.from_numpy(x).to(torch.bfloat16)[None] for x in wide]  # exact: they were bf16
    theirs = torch.nn.functional.scaled_dot_product_attention(*halves, is_causal=True)
    assert error(ours[0].swapaxes(0, 1)) < 1.1 * error(theirs[0].float().numpy())


def test_blocks_of_earlier_segments_are_never_read():
    # In both rows the block of tokens 48 to 63 belongs to segments that begin after token 8, so block 0 (0 to 7) is left out.
    q, k, v = inputs(4, 2)
    poisoned = [x.at[:, :8].set(jnp.nan) for x in (k, v)]
    out = jax.jit(lambda k, v: blocked_attention(q, k, v, IDS, block=8))
    np.testing.assert_array_equal(out(*poisoned)[:, 40:56], out(k, v)[:, 40:56])
    assert np.isnan(out(*poisoned)[:, :8]).all()


def test_no_gradient_crosses_a_border_and_bf16_stays_close_to_float32():
    arrays = inputs(4, 2)

    def second_segment(q, k, v):
        return jnp.square(blocked_attention(q, k, v, IDS, block=16)[0, 30:57].astype(jnp.float32)).sum()

    for gradient in jax.grad(second_segment, argnums=(0, 1, 2))(*arrays):
        touched = np.abs(gradient).sum((2, 3)) > 0
        assert touched[0, 31:56].all()
        assert not touched[0, :30].any() and not touched[0, 57:].any() and not touched[1].any()
    exact = blocked_attention(*arrays, IDS, block=16)
    half = blocked_attention(*(x.astype(jnp.bfloat16) for x in arrays), IDS, block=16)
    assert half.dtype == jnp.bfloat16
    error = np.abs(half.astype(jnp.float32) - exact).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize(("policy", "loops"), [("full", 3), ("attention", 2)])
def test_the_attention_policy_does_not_repeat_the_forward_loop(policy, loops):
    """Forward and backward are a loop over blocks each; without the policy the forward one runs again for the backward one."""
    q, k = jnp.ones((1, 32, 4, 8)), jnp.ones((1, 32, 2, 8))
    ids = jnp.zeros((1, 32), jnp.int32)

    def loss(q, k, v):
        layer = jax.checkpoint(
            lambda q, k, v: 2 * blocked_attention(q, k, v, ids, block=8), policy=REMAT_POLICIES[policy]
        )
        return layer(q, k, v).sum()

    def scans(jaxpr):
        inner = (x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values())))
        inner = [getattr(x, "jaxpr", x) for x in inner if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
        own = sum(eqn.primitive.name == "scan" for eqn in jaxpr.eqns)
        return own + sum(scans(x) for x in inner)

    assert scans(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, k).jaxpr) == loops
