"""The pure parts of an RL step against independent computations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dcore_jax.algorithms import algorithm_preset, policy_batch
from dcore_jax.engines import NativeEngine, Request, Sample, SamplingParams
from dcore_jax.models import model_config_from_hf
from dcore_jax.nano import build_tokenizer, nano_config
from dcore_jax.rl.batch import pad_samples, padded_length
from dcore_jax.rl.step import Minibatch, make_update, response_logprobs
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
def padded(samples):
    return pad_samples([samples[:2], samples[2:]], max_prompt=16, max_response=8)


def by_hand(decoder, sample):
    """Log-probabilities and entropies of one response alone, from whole logits in float64."""
    ids = np.array([*sample.prompt_ids, *sample.ids], np.int32)
    logits = np.asarray(decoder(ids[None]), np.float64)[0] / TEMPERATURE
    logp = logits - logits.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    at = np.arange(len(sample.prompt_ids), len(ids))
    return logp[at - 1, ids[at]], -(np.exp(logp) * logp).sum(-1)[at - 1]


def test_rows_hold_prompt_then_response_and_columns_count_from_the_response(samples, padded):
    sequences, engine_logprobs, groups = padded
    assert sequences.tokens.shape == (4, 24) and sequences.mask.shape == (4, 8)
    for row, sample in enumerate(samples):
        start, end = len(sample.prompt_ids), len(sample.prompt_ids) + len(sample.ids)
        assert tuple(sequences.tokens[row, :end]) == sample.prompt_ids + sample.ids
        assert sequences.starts[row] == start
        assert sequences.segment_ids[row].sum() == end
        assert sequences.mask[row].sum() == len(sample.ids) and sequences.mask[row, : len(sample.ids)].all()
        np.testing.assert_array_equal(engine_logprobs[row, : len(sample.ids)], np.float32(sample.logprobs))
    assert groups.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("longest", "size"), [(1, 13), (13, 13), (14, 25), (50, 50), (51, 100), (100, 100), (101, 100)]
)
def test_lengths_take_few_values(longest, size):
    assert padded_length(longest, 100) == size


def test_response_logprobs_and_entropies_equal_those_of_each_sample_alone(decoder, samples, padded):
    graph, params = nnx.split(decoder)
    logprobs, entropy = jax.jit(lambda p, s: response_logprobs(graph, p, s, temperature=TEMPERATURE))(
        params, padded.sequences
    )
    for row, sample in enumerate(samples):
        expected = by_hand(decoder, sample)
        size = len(sample.ids)
        np.testing.assert_allclose(logprobs[row, :size], expected[0], atol=2e-5)
        np.testing.assert_allclose(entropy[row, :size], expected[1], atol=2e-5)
        assert not np.any(logprobs[row, size:]) and not np.any(entropy[row, size:])
    np.testing.assert_allclose(logprobs, padded.engine_logprobs, atol=1e-4)


def update_once(decoder, padded, algorithm, micro):
    graph, params = nnx.split(decoder)
    logprobs, entropy = response_logprobs(graph, params, padded.sequences, temperature=TEMPERATURE)
    policy = policy_batch(
        algorithm,
        np.array([1.0, 0.0, 2.0, 2.0], np.float32),
        padded.groups,
        padded.sequences.mask,
        logprobs + 0.05,
        old_entropy=entropy,
        ref_logprobs=logprobs - 0.1,
    )
    minibatch = jax.tree.map(
        lambda x: np.asarray(x).reshape(micro, -1, *x.shape[1:]), Minibatch(padded.sequences, policy)
    )
    optimizer = optax.sgd(1.0)
    state = TrainState(params, optimizer.init(params), None, jnp.zeros((), jnp.int32), jax.random.PRNGKey(0))
    update = jax.jit(make_update(graph, optimizer, algorithm, max_response=8, temperature=TEMPERATURE))
    return update(state, minibatch)


@pytest.mark.parametrize("name", ["da_grpo", "kl_cov"])
def test_microbatches_add_up_to_the_minibatch(name, decoder, padded):
    algorithm = algorithm_preset(name, "paper")
    if name == "kl_cov":
        algorithm = dataclasses.replace(algorithm, kl_cov_ratio=0.2, kl_cov_coefficient=50.0)
    whole, halves = (update_once(decoder, padded, algorithm, micro) for micro in (1, 2))
    for a, b in zip(jax.tree.leaves(whole[0].params), jax.tree.leaves(halves[0].params)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(whole[1].loss, halves[1].loss, rtol=1e-5)
    np.testing.assert_allclose(whole[1].gradient_norm, halves[1].gradient_norm, rtol=1e-4)
    np.testing.assert_allclose(np.array(whole[1].sums), np.array(halves[1].sums), rtol=1e-4, atol=1e-5)
    assert bool(whole[1].finite) and int(whole[0].step) == 1
    moved = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(
        jax.tree.leaves(whole[0].params), jax.tree.leaves(nnx.split(decoder)[1])
    )]  # fmt: skip
    assert max(moved) > 1e-4


def test_a_gradient_that_is_not_finite_changes_nothing(decoder, samples):
    broken = dataclasses.replace(samples[0], logprobs=samples[0].logprobs)
    padded = pad_samples([[broken, samples[1]], samples[2:]], max_prompt=16, max_response=8)
    graph, params = nnx.split(decoder)
    algorithm = algorithm_preset("da_grpo", "paper")
    mask = padded.sequences.mask
    policy = policy_batch(
        algorithm,
        np.array([np.inf, 0.0, 2.0, 2.0], np.float32),
        padded.groups,
        mask,
        np.zeros(mask.shape, np.float32),
        old_entropy=np.full(mask.shape, np.nan, np.float32),
        ref_logprobs=np.zeros(mask.shape, np.float32),
    )
    minibatch = jax.tree.map(lambda x: np.asarray(x)[None], Minibatch(padded.sequences, policy))
    optimizer = optax.sgd(1.0)
    state = TrainState(params, optimizer.init(params), None, jnp.zeros((), jnp.int32), jax.random.PRNGKey(0))
    update = jax.jit(make_update(graph, optimizer, algorithm, max_response=8, temperature=TEMPERATURE))
    new, metrics = update(state, minibatch)
    assert not bool(metrics.finite)
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(params)):
        np.testing.assert_array_equal(a, b)


def test_an_overlong_sample_has_an_empty_row():
    samples = [Sample("a", (1, 2), (), (), "overlong", 0), Sample("b", (1,), (3,), (-1.0,), "length", 0)]
    padded = pad_samples([samples], max_prompt=4, max_response=4)
    assert padded.sequences.mask.sum(axis=1).tolist() == [0, 1]
