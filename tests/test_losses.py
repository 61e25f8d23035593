"""Policy losses against a float64 policy of three tokens, and the sums that make microbatches exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import softmax_policy as hand
from dcore_jax import losses
from dcore_jax.algorithms import (
    ALGORITHMS,
    algorithm_preset,
    choose_penalised,
    policy_batch,
    policy_batch_denominator,
    policy_batch_loss,
)
from dcore_jax.errors import UserError

# What each preset must compute, written out from the papers and the releases, not read from the configs.
DCORE = {"low": 0.2, "high": 0.2, "dual": 3.0, "kl": 0.001}
TEXT = {"low": 0.2, "high": 0.2, "kl": 0.001, "aggregation": "sequence_mean"}  # no text has the dual clip
CODE = {**DCORE, "kl_limit": 10.0}
GSPO = {"low": 3e-4, "high": 4e-4, "aggregation": "sequence_mean", "sequence_ratio": True}
EXPECTED = {
    ("da_grpo", "paper"): {**TEXT, "advantage": "da_grpo"},
    ("da_grpo", "release"): {**CODE, "advantage": "da_grpo", "scale": 2.0},
    ("grpo", "paper"): TEXT,
    ("grpo", "release"): CODE,
    ("dr_grpo", "paper"): {
        "advantage": "dr_grpo",
        "low": 0.2,
        "high": 0.2,
        "aggregation": "constant_length",
    },
    ("dr_grpo", "release"): {**DCORE, "kl": 0.0, "advantage": "dr_grpo", "aggregation": "constant_length"},
    ("dapo", "paper"): {"low": 0.2, "high": 0.28},
    ("dapo", "release"): {"low": 0.2, "high": 0.28, "dual": 10.0},
    ("gspo", "paper"): GSPO,
    ("gspo", "release"): {**GSPO, "kl": 0.001, "kl_limit": 10.0},
    ("rest", "paper"): {
        **TEXT,
        "kl": 0.0,
        "ddof": 0,
        "weights": [1.0, 0.95 - 0.3, 1.2, 0.8 + 0.3, 0.016 + 0.006],
    },
    ("rest", "release"): {**CODE, "kl": 0.0, "weights": [0, 1.0, 1.2, 0.8, 0.8], "aggregation": "weighted"},
    ("rl_zvp", "paper"): {**TEXT, "advantage": "rl_zvp"},
    ("rl_zvp", "release"): {**CODE, "advantage": "rl_zvp_release", "scale": 2.0},
    ("kl_cov", "paper"): {"kl_cov": 0.002},
    ("kl_cov", "release"): {"kl_cov": 0.002},
}
MAX_LENGTH = 5
PROGRESS = 100.0  # training steps, for ResT's curriculum


def rollout_batch(config, rollouts):
    """The library's batch of the same rollouts, everything given that any algorithm needs."""
    old = hand.token_logprobs(rollouts.old, rollouts.tokens)
    return policy_batch(
        config,
        rollouts.rewards,
        rollouts.groups,
        rollouts.mask,
        old,
        correct=rollouts.correct,
        old_entropy=hand.token_entropies(rollouts.old, rollouts.tokens),
        ref_logprobs=hand.token_logprobs(rollouts.reference, rollouts.tokens),
        regions=rollouts.regions,
        progress=PROGRESS,
    )


@partial(jax.jit, static_argnums=0)
def library_step(config, logits, tokens, batch, denominator):
    """Loss, sums and gradient in the logits of the three-token policy."""

    def step_loss(logits):
        previous = jnp.concatenate([jnp.full((tokens.shape[0], 1), hand.START), tokens[:, :-1]], axis=1)
        logprobs = jax.nn.log_softmax(logits)[previous, tokens]
        return policy_batch_loss(config, logprobs, batch, denominator=denominator)

    (value, sums), gradient = jax.value_and_grad(step_loss, has_aux=True)(logits)
    return value, sums, gradient


def test_every_algorithm_and_preset_is_checked():
    assert {name for name, _ in EXPECTED} == set(ALGORITHMS) and len(EXPECTED) == 2 * len(ALGORITHMS)


@pytest.mark.parametrize(("name", "preset"), EXPECTED)
def test_a_policy_gradient_step_equals_float64_numpy(name, preset):
    config = algorithm_preset(name, preset)
    clipped = dual_clipped = 0.0
    for seed, distance in ((0, 0.0), (1, 0.2), (2, 1.5), (3, 4.0)):
        rollouts = hand.sample_rollouts(seed)
        logits = rollouts.old + distance * np.random.default_rng(seed).normal(size=rollouts.old.shape)
        if distance == 0:
            # On-policy, |log ratio| has a corner; a hair away from it both sides agree on the slope.
            logits = logits + 1e-3 * np.random.default_rng(seed).normal(size=logits.shape)
        batch = rollout_batch(config, rollouts)
        denominator = policy_batch_denominator(config, batch, max_length=MAX_LENGTH)
        value, sums, gradient = library_step(
            config, jnp.asarray(logits, jnp.float32), rollouts.tokens, batch, denominator
        )
        expected = hand.gradient(logits, rollouts, **EXPECTED[name, preset])
        np.testing.assert_allclose(
            value, hand.loss(logits, rollouts, **EXPECTED[name, preset]), rtol=2e-5, atol=2e-6
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max() + 1e-7)
        assert np.abs(expected).max() > 1e-4
        clipped += float(sums.clipped_low + sums.clipped_high)
        dual_clipped += float(sums.dual_clipped)
    # The cases reach every branch that the preset has.
    assert (clipped > 0) == (config.clip_low is not None)
    assert dual_clipped > 0 or config.dual_clip in (None, 10.0)


# One preset for each aggregation and each term whose sums could depend on the split.
SPLIT = [
    ("da_grpo", "paper"),
    ("dr_grpo", "paper"),
    ("gspo", "release"),
    ("rest", "release"),
    ("kl_cov", "paper"),
]


@pytest.mark.parametrize(("name", "preset"), SPLIT)
def test_microbatches_add_up_to_the_whole(name, preset):
    config = algorithm_preset(name, preset)
    rollouts = hand.sample_rollouts(5)
    logits = jnp.asarray(rollouts.old + 0.5 * rollouts.reference, jnp.float32)
    batch = rollout_batch(config, rollouts)
    # KL-Cov chooses once, among all tokens of the minibatch.
    batch = choose_penalised(config, jnp.float32(hand.token_logprobs(logits, rollouts.tokens)), batch)
    denominator = policy_batch_denominator(config, batch, max_length=MAX_LENGTH)
    whole = library_step(config, logits, rollouts.tokens, batch, denominator)
    parts = [
        library_step(
            config,
            logits,
            rollouts.tokens[rows],
            jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch),
            denominator,
        )
        for rows in (slice(0, 4), slice(4, 9))
    ]
    np.testing.assert_allclose(parts[0][0] + parts[1][0], whole[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parts[0][2] + parts[1][2], whole[2], rtol=1e-4, atol=1e-7)
    joined = losses.add_policy_sums(parts[0][1], parts[1][1])
    np.testing.assert_allclose(joined, whole[1], rtol=1e-5, atol=1e-5)
    for got, expected in zip(losses.policy_metrics(joined), losses.policy_metrics(whole[1])):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_denominators_are_sums_over_responses():
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    weights = np.array([[0.5, 1.5, 9], [2, 9, 9], [9, 9, 9]], np.float32)
    denominator = partial(losses.loss_denominator, mask, max_length=7, token_weights=weights)
    assert denominator("token_mean") == 3
    assert denominator("sequence_mean") == 2  # a row that only pads is no response
    assert denominator("constant_length") == 14
    assert denominator("weighted_token_mean") == 4
    values = np.array([[1, 2, 9], [4, 9, 9], [9, 9, 9]], np.float32)
    assert losses.aggregate(values, mask, "token_mean") == 7
    assert losses.aggregate(values, mask, "sequence_mean") == 5.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16))
def test_kl_estimates_have_the_expectations_their_names_promise(seed):
    p, q = np.exp(hand.log_softmax(np.random.default_rng(seed).normal(size=(2, 3)))).astype(np.float32)
    kl = float(np.sum(p.astype(np.float64) * np.log(p.astype(np.float64) / q)))
    k1, k2, k3 = (kl_estimates[name](np.log(p), np.log(q)) for name in ("k1", "k2", "k3"))
    assert np.sum(p * k1) == pytest.approx(kl, abs=1e-5)
    assert np.sum(p * k3) == pytest.approx(kl, abs=1e-5) and np.all(np.asarray(k3) >= -1e-7)
    np.testing.assert_allclose(k2, 0.5 * (np.log(p) - np.log(q)) ** 2, rtol=1e-5)


kl_estimates = {name: jax.jit(partial(losses.kl_estimate, estimator=name)) for name in losses.KL_ESTIMATORS}


def test_low_var_kl_is_k3_cut_off_at_ten():
    logprobs, reference = np.array([-1.0, -9.0, -30.0], np.float32), np.array([-2.0, -1.0, -1.0], np.float32)
    exact = np.expm1(reference.astype(np.float64) - logprobs) - (reference - logprobs)
    got = np.asarray(kl_estimates["low_var_kl"](logprobs, reference))
    np.testing.assert_allclose(got, [exact[0], 10, 10], rtol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(losses.kl_estimate(x, reference, "low_var_kl")))(jnp.asarray(logprobs))
    np.testing.assert_allclose(slope, [1 - np.exp(-1.0), 0, 0], rtol=1e-5)
    assert np.all(np.isfinite(kl_estimates["k3"](np.float32([-1e4]), np.float32([0.0]))))


def test_what_stands_outside_the_mask_reaches_neither_loss_nor_gradient():
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    poison = np.where(mask, -1.0, np.nan).astype(np.float32)
    infinite = np.where(mask, -1.1, -np.inf).astype(np.float32)
    advantages = np.where(mask, 1.0, np.nan).astype(np.float32)
    for ratio in losses.RATIOS:
        loss = partial(
            losses.policy_loss, old_logprobs=infinite, advantages=advantages, mask=mask, ratio=ratio,
            ref_logprobs=poison, kl_coefficient=0.1, importance_weights=-poison, token_weights=-poison,
        )  # fmt: skip
        (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(poison))
        assert np.isfinite(value) and np.all(np.isfinite(jnp.stack(sums)))
        assert np.all(np.asarray(gradient)[mask == 0] == 0) and np.all(np.asarray(gradient)[mask == 1] != 0)


def test_metrics_count_each_clip_once():
    log_ratio = np.log(np.array([[1.0, 1.5, 0.5, 0.5, 1.5, 4.0]]))
    advantages = np.array([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    _, sums = jax.jit(losses.policy_loss)(log_ratio, np.zeros((1, 6)), advantages, np.ones((1, 6)))
    metrics = losses.policy_metrics(sums)
    assert (sums.clipped_high, sums.clipped_low, sums.dual_clipped) == (1, 1, 1)
    assert metrics.clip_fraction_high == pytest.approx(1 / 6)
    ratio = np.exp(log_ratio)
    assert metrics.ess == pytest.approx(ratio.sum() ** 2 / (ratio**2).sum() / 6, rel=1e-5)
    assert metrics.old_kl == pytest.approx(-log_ratio.mean(), rel=1e-5)
    assert (metrics.ratio_min, metrics.ratio_max) == (pytest.approx(0.5), pytest.approx(4.0))


def test_importance_weights_are_truncated_and_multiply_the_policy_term_only():
    old, engine = np.log([[0.5, 0.4, 0.9]]), np.log([[0.5, 0.1, 0.9]])
    mask = np.ones((1, 3))
    weights = losses.truncated_importance_weights(old, engine, mask, cap=2.0)
    np.testing.assert_allclose(weights, [[1, 2, 1]], rtol=1e-6)
    sequence = losses.truncated_importance_weights(old, engine, mask, cap=5.0, level="sequence")
    np.testing.assert_allclose(sequence, [[4, 4, 4]], rtol=1e-5)
    gap = losses.engine_gap(old, engine, mask, cap=2.0)
    w = np.array([1.0, 4.0, 1.0])
    assert gap.mean_abs == pytest.approx(np.log(4) / 3, rel=1e-5) and gap.largest == pytest.approx(
        np.log(4), rel=1e-5
    )
    assert gap.ess == pytest.approx(w.sum() ** 2 / (w**2).sum() / 3, rel=1e-5)
    assert gap.kl == pytest.approx((3 - np.log(4)) / 3, rel=1e-5) and gap.truncated == pytest.approx(1 / 3)
    loss = partial(
        losses.policy_loss, old, old, np.ones((1, 3)), mask, ref_logprobs=engine, kl_coefficient=1.0
    )
    k3 = float(np.sum(np.exp(engine - old) - (engine - old) - 1)) / 3
    assert loss()[0] == pytest.approx(-1 + k3, rel=1e-5)
    assert loss(importance_weights=weights)[0] == pytest.approx(-4 / 3 + k3, rel=1e-5)


def test_an_empty_microbatch_adds_nothing():
    zeros = np.zeros((2, 3))
    value, sums = losses.policy_loss(zeros, zeros, zeros, zeros)
    assert value == 0 and sums.tokens == 0 and np.isfinite(losses.policy_metrics(sums).ess)


def test_mistakes_are_named():
    ones = np.ones((1, 2))
    call = partial(losses.policy_loss, ones, ones, ones, ones)
    with pytest.raises(UserError, match="aggregation 'mean' is unknown"):
        call(aggregation="mean")
    with pytest.raises(UserError, match="'constant_length' needs max_length"):
        call(aggregation="constant_length")
    with pytest.raises(UserError, match="'weighted_token_mean' needs token_weights"):
        call(aggregation="weighted_token_mean")
    with pytest.raises(UserError, match="ratio 'word' is unknown"):
        call(ratio="word")
    with pytest.raises(UserError, match="needs ref_logprobs"):
        call(kl_coefficient=0.1)
    with pytest.raises(UserError, match="KL estimator 'k4' is unknown"):
        call(ref_logprobs=ones, kl_estimator="k4")
    with pytest.raises(UserError, match="importance level 'page' is unknown; choose one of token, sequence"):
        losses.truncated_importance_weights(ones, ones, ones, level="page")
