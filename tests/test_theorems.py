"""The theorems of D-CORE and ResT on policies small enough to see through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dcore_jax import advantages as adv
from dcore_jax.losses import policy_loss

POSITIONS, VOCABULARY = 6, 3
GROUPS = np.array([0, 0, 1, 1])
MASK = np.ones((4, POSITIONS), bool)


@jax.jit
def policy_gradient(logits, tokens, values):
    """Gradient of the loss in logits [responses, positions, vocabulary], on-policy."""

    def loss(logits):
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        return policy_loss(logprobs, jax.lax.stop_gradient(logprobs), values, jnp.ones_like(values))[0]

    return jax.grad(loss)(logits)


def entropies(logits):
    logp = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    return -np.sum(np.exp(logp) * logp, axis=-1).astype(np.float32)


grpo, da_grpo = jax.jit(adv.grpo), jax.jit(adv.da_grpo)
surprisal = jax.jit(lambda logprobs: adv.select_entropy("surprisal", old_logprobs=logprobs))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.tuples(st.floats(-3, 4, width=32), st.floats(-3, 4, width=32)))
def test_without_reward_variance_da_grpo_still_has_a_gradient_and_grpo_has_none(seed, rewards):
    """D-CORE Theorem A.1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, POSITIONS, VOCABULARY))
    tokens = rng.integers(0, VOCABULARY, (4, POSITIONS))
    rewards = np.repeat(np.float32(rewards), 2)
    entropy = entropies(logits)
    assert np.all(entropy > 0)
    still = policy_gradient(jnp.asarray(logits, jnp.float32), tokens, grpo(rewards, GROUPS, MASK))
    assert np.all(np.asarray(still) == 0)
    moving = policy_gradient(
        jnp.asarray(logits, jnp.float32), tokens, da_grpo(rewards, GROUPS, entropy, MASK)
    )
    assert np.all(np.linalg.norm(np.asarray(moving), axis=-1) > 1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.05, 0.8))
def test_an_update_raises_the_sampled_token_of_a_more_uncertain_position_more(seed, sharpness):
    """D-CORE Theorem A.2: of one distribution at rising temperature, its likeliest token sampled, H ranks the rise."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=VOCABULARY)
    direction /= np.ptp(direction)
    assume(np.diff(np.sort(direction))[-1] > 0.1)
    scales = sharpness * np.array([8, 4, 2, 1, 0.5, 0.25])  # from nearly certain to nearly uniform
    logits = np.tile(scales[:, None] * direction, (4, 1, 1))
    tokens = np.full((4, POSITIONS), int(np.argmax(direction)))
    entropy = entropies(logits)
    assert np.all(np.diff(entropy[0]) > 0)
    values = da_grpo(np.ones(4), GROUPS, entropy, MASK)
    step = -1e-2 * np.asarray(policy_gradient(jnp.asarray(logits, jnp.float32), tokens, values), np.float64)

    def logprob(table):
        table = table - np.log(np.sum(np.exp(table), axis=-1, keepdims=True))
        return np.take_along_axis(table, tokens[..., None], axis=-1)[..., 0]

    rise = (logprob(logits + step) - logprob(logits))[0]
    assert np.all(rise > -1e-12) and np.all(np.diff(rise) > 0)
    assert np.argmax(rise) == np.argmax(entropy[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16))
def test_with_surprisal_the_least_likely_sampled_token_rises_most(seed):
    """D-CORE Theorem A.2 as stated, with -log pi_old(y) for H: three responses sample the three tokens of one policy."""
    logits = np.random.default_rng(seed).normal(size=VOCABULARY)
    logp = logits - np.log(np.sum(np.exp(logits)))
    assume(np.min(np.diff(np.sort(logp))) > 0.05)
    tokens = np.tile(np.array([0, 1, 2, 0])[:, None], (1, POSITIONS))
    table = np.tile(logits, (4, POSITIONS, 1))
    sampled = np.tile(logp[tokens[:, 0]][:, None], (1, POSITIONS)).astype(np.float32)
    values = da_grpo(np.ones(4), GROUPS, surprisal(sampled), MASK, delta=100.0)
    step = -1e-2 * np.asarray(policy_gradient(jnp.asarray(table, jnp.float32), tokens, values), np.float64)
    moved = table + step
    moved = moved - np.log(np.sum(np.exp(moved), axis=-1, keepdims=True))
    rise = [moved[i, 0, i] - logp[i] for i in range(3)]
    assert np.all(np.argsort(rise) == np.argsort(-logp)) and min(rise) > 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40))
def test_collision_uncertainty_is_at_most_one_minus_exp_of_minus_entropy(weights):
    """ResT Lemma 2: 1 - sum p^2 <= 1 - exp(-H), with equality for a uniform distribution."""
    p = np.array(weights) / np.sum(weights)
    entropy = -np.sum(p * np.log(p))
    assert 1 - np.sum(p**2) <= 1 - np.exp(-entropy) + 1e-12
    uniform = np.full(len(p), 1 / len(p))
    assert 1 - np.sum(uniform**2) == pytest.approx(1 - np.exp(-np.log(len(p))))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 5.0), min_size=2, max_size=30), st.integers(0, 2**16))
def test_weights_inverse_to_beta_minimise_the_weighted_variance(beta, seed):
    """ResT Theorem 2: among all w with sum w = T, w = T (1/beta) / sum(1/beta) minimises sum beta w^2."""
    beta = np.array(beta)
    best = len(beta) / beta / np.sum(1 / beta)
    others = np.random.default_rng(seed).normal(size=(50, len(beta)))
    others += best - others.mean(axis=1, keepdims=True)
    assert np.allclose(others.sum(axis=1), len(beta))
    assert np.all(others**2 @ beta >= best**2 @ beta * (1 - 1e-12))


inverse_weights = jax.jit(adv.entropy_region_weights, static_argnames="kind")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.25, 3.0, width=32), min_size=5, max_size=5))
def test_the_library_s_initial_weights_are_those_of_theorem_2(entropy):
    beta = 1 - np.exp(-np.array(entropy))  # Lemma 2's bound on each region's variance
    got = np.asarray(inverse_weights(np.array(entropy, np.float32), kind="collision"), np.float64)
    best = (1 / beta) / np.sum(1 / beta)
    np.testing.assert_allclose(got / got.sum(), best, rtol=1e-5)
