"""Sampling against exact distributions computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.engines.native.sampling import RowSampling, sample

# 0.1 % points of the chi-squared distribution by degrees of freedom (Abramowitz and Stegun, table 26.8).
CHI_SQUARED_999 = {4: 18.467, 5: 20.515, 9: 27.877, 19: 43.820, 29: 58.301}


def rows(count, *, temperature=1.0, top_p=1.0, top_k=10**6, first_seed=0):
    seeds = np.arange(first_seed, first_seed + count, dtype=np.uint32)
    return RowSampling(
        seed=jnp.stack([jnp.zeros(count, jnp.uint32), jnp.asarray(seeds)], axis=1),
        temperature=jnp.full(count, temperature, jnp.float32),
        top_p=jnp.full(count, top_p, jnp.float32),
        top_k=jnp.full(count, top_k, jnp.int32),
    )


def draw(logits, count, **how):
    """`count` draws from one distribution, each with a seed of its own."""
    tokens, logprobs = jax.jit(sample)(
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits))),
        jnp.zeros(count, jnp.int32),
        rows(count, **how),
    )
    return np.asarray(tokens), np.asarray(logprobs)


def probabilities(logits, temperature=1.0, top_p=1.0, top_k=10**6):
    """The truncated distribution by its definition, with a sort, in float64."""
    scaled = np.asarray(logits, np.float32).astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[:top_k]
    if top_p < 1:
        mass = np.cumsum(p[kept]) / p[kept].sum()
        kept = kept[: np.searchsorted(mass, top_p) + 1]
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 6},
        {"top_p": 0.8},
        {"top_k": 10, "top_p": 0.9, "temperature": 1.3},
    ],
)
def test_frequencies_match_the_distribution(how):
    logits = np.random.default_rng(3).normal(size=300) * 2
    expected = probabilities(logits, **how)
    tokens, _ = draw(logits, 20_000, **how)
    counts = np.bincount(tokens, minlength=300)
    assert counts[expected == 0].sum() == 0
    # The most probable tokens each, the others together.
    frequent = np.argsort(-expected)[: min(29, (expected > 0).sum() - 1)]
    frequent = frequent[expected[frequent] * 20_000 >= 5]
    freedom = max(n for n in CHI_SQUARED_999 if n <= len(frequent))
    frequent = frequent[:freedom]
    observed = np.append(counts[frequent], 20_000 - counts[frequent].sum())
    wanted = 20_000 * np.append(expected[frequent], 1 - expected[frequent].sum())
    assert ((observed - wanted) ** 2 / wanted).sum() < CHI_SQUARED_999[freedom]


def test_rare_tokens_are_drawn_as_rarely_as_they_should_be():
    # 8,191 tokens share a mass of 1 %: their own probabilities are near 1e-6, and none is favoured by its place.
    logits = np.full(8192, np.log(0.01 / 8191))
    logits[4000] = np.log(0.99)
    tokens, _ = map(np.concatenate, zip(*(draw(logits, 4_000, first_seed=4_000 * i) for i in range(4))))
    rare = tokens[tokens != 4000]
    assert abs(len(rare) - 160) < 4 * np.sqrt(160)
    fifths = np.bincount(rare * 5 // 8192, minlength=5)
    assert ((fifths - len(rare) / 5) ** 2 / (len(rare) / 5)).sum() < CHI_SQUARED_999[4]


@pytest.mark.parametrize(("seed", "word"), [(3353848, 0), (15995900, 1), (21216325, 1)])
def test_a_uniform_of_zero_draws_no_token_that_is_next_to_impossible(seed, word):
    key = jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")
    assert jax.random.uniform(jax.random.fold_in(key, 0), (2,))[word] == 0  # once in 2**23 draws
    logits = np.full(1024, -60.0)
    logits[[645, 700]] = 0.0, -1.0
    tokens, _ = draw(logits, 1, first_seed=seed)
    assert tokens[0] in (645, 700)


@pytest.mark.parametrize("vocab", [1, 128, 131, 1000])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_logprobs_are_those_of_the_full_distribution(vocab, temperature):
    logits = np.random.default_rng(vocab).normal(size=vocab) * 5
    tokens, logprobs = draw(logits, 64, temperature=temperature, top_k=max(1, vocab // 2), top_p=0.9)
    expected = np.log(probabilities(logits, temperature or 1.0))
    assert tokens.min() >= 0 and tokens.max() < vocab
    np.testing.assert_allclose(logprobs, expected[tokens], rtol=1e-5, atol=2e-6)
    if temperature == 0:
        assert (tokens == np.argmax(logits)).all()


@given(
    weights=st.lists(st.integers(0, 40), min_size=1, max_size=40),
    top_k=st.integers(1, 45),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.95, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_truncation_keeps_exactly_the_tokens_of_the_definition(weights, top_k, top_p):
    # Distinct logits, so that the definition has no ties to break, on a fixed vocabulary (one program).
    logits = np.full(40, -60.0)
    logits[: len(weights)] = np.asarray(weights) * 0.25 + np.linspace(0, 0.1, len(weights))
    allowed = probabilities(logits, top_k=top_k, top_p=top_p) > 0
    # float32 sums may fall on either side of an edge
    looser = probabilities(logits, top_k=top_k, top_p=min(1.0, top_p + 1e-5)) > 0
    tokens, _ = draw(logits, 256, top_k=top_k, top_p=top_p)
    assert (allowed | looser)[tokens].all()


def test_every_kept_token_is_reachable_and_ties_stay_together():
    tokens, _ = draw([0.0, 0.0, 0.0, -1.0], 400, top_k=2)
    assert set(tokens.tolist()) == {0, 1, 2}
    tokens, _ = draw([0.0, -0.1, -0.2, -9.0], 400, top_p=0.99)
    assert set(tokens.tolist()) == {0, 1, 2}


def test_rows_sample_by_their_own_settings_seed_and_step():
    run = jax.jit(sample)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)), jnp.float32)
    mixed = rows(4)._replace(temperature=jnp.array([0.0, 1.0, 1.0, 1.0]), top_k=jnp.array([50, 1, 50, 50]))
    tokens, _ = run(logits, jnp.zeros(4, jnp.int32), mixed)
    np.testing.assert_array_equal(tokens[:2], np.argmax(logits[:2], axis=1))
    for row in range(4):  # alone or among others
        own = jax.tree.map(lambda x, row=row: x[row : row + 1], mixed)
        assert run(logits[row : row + 1], jnp.zeros(1, jnp.int32), own)[0][0] == tokens[row]
    flat = jnp.zeros((64, 50))
    steps = jnp.arange(64, dtype=jnp.int32)
    one_seed = rows(64)._replace(seed=jnp.zeros((64, 2), jnp.uint32))
    by_step = run(flat, steps, one_seed)[0]
    assert len(set(by_step.tolist())) > 25
    np.testing.assert_array_equal(run(flat, steps, one_seed)[0], by_step)
    high_word = one_seed._replace(seed=one_seed.seed.at[:, 0].set(1))
    assert (run(flat, steps, high_word)[0] != by_step).mean() > 0.8


def test_logits_that_are_not_finite_show_in_the_logprob():
    logits = jnp.zeros((2, 10)).at[0, 3].set(jnp.nan)
    for temperature in (0.0, 1.0):
        tokens, logprobs = sample(logits, jnp.zeros(2, jnp.int32), rows(2, temperature=temperature))
        assert not np.isfinite(logprobs[0])
        assert np.isfinite(logprobs[1])
        assert 0 <= int(tokens[0]) < 10
