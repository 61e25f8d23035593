"""The pure parts of an RL step against independent computations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcore_jax.algorithms import algorithm_preset, policy_batch, policy_batch_denominator
from dcore_jax.engines import NativeEngine, Request, Sample, SamplingParams
from dcore_jax.models import model_config_from_hf
from dcore_jax.nano import build_tokenizer, nano_config
from dcore_jax.rl.batch import padded_length, response_arrays
from dcore_jax.rl.rows import pack_rows
from dcore_jax.rl.step import accumulate_pass, finish_update, nothing_accumulated, response_logprobs
from dcore_jax.training import TrainState
from dcore_jax.weights import new_decoder

TEMPERATURE = 0.7
RNG = np.random.default_rng(0)
LENGTHS = [(9, 4), (3, 7), (12, 1), (5, 8)]  # prompt, response


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    fields = nano_config(build_tokenizer(tmp_path_factory.mktemp("tokenizer")), hidden=64, layers=1)
    return new_decoder(model_config_from_hf({**fields, "initializer_range": 0.3}), seed=1)


@pytest.fixture(scope="module")
def samples(decoder):
    engine = NativeEngine(decoder, slots=4, max_length=32)
    prompts = [tuple(map(int, RNG.integers(0, 500, size))) for size, _ in LENGTHS]
    sampling = [
        SamplingParams(max_tokens=n, temperature=TEMPERATURE, seed=n, ignore_eos=True) for _, n in LENGTHS
    ]
    return engine.generate([Request(*pair) for pair in zip(prompts, sampling)])


@pytest.fixture(scope="module")
def responses(samples):
    return response_arrays([[sample] for sample in samples], max_response=8)._replace(
        groups=np.array([0, 0, 1, 1])
    )


def alone(samples, row_length=2048):
    """The samples' prompts differ, so each is a group of its own here."""
    return pack_rows([[sample] for sample in samples], tokens=8, row_length=row_length)


def by_hand(decoder, sample):
    """Log-probabilities and entropies of one response alone, from whole logits in float64."""
    ids = np.array([*sample.prompt_ids, *sample.ids], np.int32)
    logits = np.asarray(decoder(ids[None]), np.float64)[0] / TEMPERATURE
    logp = logits - logits.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    at = np.arange(len(sample.prompt_ids), len(ids))
    return logp[at - 1, ids[at]], -(np.exp(logp) * logp).sum(-1)[at - 1]


def test_columns_count_from_the_response(samples, responses):
    assert responses.mask.shape == (4, 8)
    for row, sample in enumerate(samples):
        size = len(sample.ids)
        assert responses.mask[row].sum() == size and responses.mask[row, :size].all()
        np.testing.assert_array_equal(responses.engine_logprobs[row, :size], np.float32(sample.logprobs))
    assert response_arrays([samples[:2], samples[2:]], max_response=8).groups.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("longest", "size"), [(1, 13), (13, 13), (14, 25), (50, 50), (51, 100), (100, 100), (101, 100)]
)
def test_lengths_take_few_values(longest, size):
    assert padded_length(longest, 100) == size


def test_response_logprobs_and_entropies_equal_those_of_each_sample_alone(decoder, samples, responses):
    graph, params = nnx.split(decoder)
    (rows,) = alone(samples)
    logprobs, entropy, here = jax.jit(
        lambda p, r: response_logprobs(graph, p, r, responses.mask, temperature=TEMPERATURE)
    )(params, rows)
    np.testing.assert_array_equal(here, responses.mask)
    for row, sample in enumerate(samples):
        expected = by_hand(decoder, sample)
        size = len(sample.ids)
        np.testing.assert_allclose(logprobs[row, :size], expected[0], atol=2e-5)
        np.testing.assert_allclose(entropy[row, :size], expected[1], atol=2e-5)
        assert not np.any(logprobs[row, size:]) and not np.any(entropy[row, size:])
    np.testing.assert_allclose(logprobs, responses.engine_logprobs, atol=1e-4)


def update(decoder, algorithm, passes, policy):
    graph, params = nnx.split(decoder)
    optimizer = optax.sgd(1.0)
    state = TrainState(params, optimizer.init(params), None, jnp.zeros((), jnp.int32), jax.random.PRNGKey(0))
    denominator = policy_batch_denominator(algorithm, policy, max_length=8)
    step = jax.jit(partial(accumulate_pass, graph, algorithm, temperature=TEMPERATURE))
    found = nothing_accumulated(params)
    for rows in passes:
        found = step(params, found, rows, policy, denominator)
    return jax.jit(partial(finish_update, optimizer))(state, found)


def test_passes_add_up_to_the_update(decoder, samples, responses):
    """KL-Cov's passes: test_rl_rows.py, among all algorithms'."""
    algorithm = algorithm_preset("da_grpo", "paper")
    graph, params = nnx.split(decoder)
    logprobs, entropy, _ = response_logprobs(
        graph, params, alone(samples)[0], responses.mask, temperature=TEMPERATURE
    )
    policy = policy_batch(
        algorithm,
        np.array([1.0, 0.0, 2.0, 2.0], np.float32),
        responses.groups,
        responses.mask,
        logprobs + 0.05,
        old_entropy=entropy,
        ref_logprobs=logprobs - 0.1,
    )
    one, several = alone(samples), alone(samples, row_length=16)
    assert (len(one), len(several)) == (1, 4)
    whole, parts = (update(decoder, algorithm, passes, policy) for passes in (one, several))
    for a, b in zip(jax.tree.leaves(whole[0].params), jax.tree.leaves(parts[0].params)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(whole[1].loss, parts[1].loss, rtol=1e-5)
    np.testing.assert_allclose(whole[1].gradient_norm, parts[1].gradient_norm, rtol=1e-4)
    np.testing.assert_allclose(np.array(whole[1].sums), np.array(parts[1].sums), rtol=1e-4, atol=1e-5)
    assert bool(whole[1].finite) and int(whole[0].step) == 1
    moved = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(
        jax.tree.leaves(whole[0].params), jax.tree.leaves(nnx.split(decoder)[1])
    )]  # fmt: skip
    assert max(moved) > 1e-4


def test_a_gradient_that_is_not_finite_changes_nothing(decoder, samples, responses):
    algorithm = algorithm_preset("da_grpo", "paper")
    mask = responses.mask
    policy = policy_batch(
        algorithm,
        np.array([np.inf, 0.0, 2.0, 2.0], np.float32),
        responses.groups,
        mask,
        np.zeros(mask.shape, np.float32),
        old_entropy=np.full(mask.shape, np.nan, np.float32),
        ref_logprobs=np.zeros(mask.shape, np.float32),
    )
    new, metrics = update(decoder, algorithm, alone(samples), policy)
    assert not bool(metrics.finite)
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(nnx.split(decoder)[1])):
        np.testing.assert_array_equal(a, b)


def test_an_overlong_sample_has_an_empty_row():
    samples = [Sample("a", (1, 2), (), (), "overlong", 0), Sample("b", (1, 2), (3,), (-1.0,), "length", 0)]
    assert response_arrays([samples], max_response=4).mask.sum(axis=1).tolist() == [0, 1]
    (rows,) = pack_rows([samples], tokens=4, row_length=16)
    assert rows.places[rows.places < 8].tolist() == [4]
