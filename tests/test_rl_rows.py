"""Packed rows with shared prompts against one response a row: equal in loss, gradient and metrics, and nothing leaks."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax import UserError
from dcore_jax.algorithms import (
    ALGORITHMS,
    algorithm_preset,
    choose_penalised,
    policy_batch,
    policy_batch_denominator,
)
from dcore_jax.engines import Sample
from dcore_jax.losses import policy_metrics
from dcore_jax.mesh import make_mesh
from dcore_jax.models import model_config_from_hf
from dcore_jax.models.attention import attend, segment_mask
from dcore_jax.nano.config import nano_fields
from dcore_jax.rl.batch import response_arrays
from dcore_jax.rl.rows import count_rows, pack_rows, row_lengths
from dcore_jax.rl.step import accumulate_pass, nothing_accumulated, response_logprobs
from dcore_jax.weights import new_decoder

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from padded_rl import pad_samples, padded_gradient, padded_logprobs

VOCAB = 192
RNG = np.random.default_rng(0)


def group(prompt, lengths):
    ids = tuple(map(int, RNG.integers(1, VOCAB, prompt)))
    return [
        Sample("x", ids, tuple(map(int, RNG.integers(1, VOCAB, n))), (-1.0,) * n, "stop", 0) for n in lengths
    ]


GROUPS = [group(40, [5, 30, 1, 12]), group(7, [60, 2, 2, 9]), group(90, [3, 3, 50, 17])]
ARRAYS = response_arrays(GROUPS, max_response=64)


@pytest.fixture(scope="module")
def decoder():
    fields = nano_fields(VOCAB, hidden=64, layers=1) | {"initializer_range": 0.3}
    return new_decoder(model_config_from_hf(fields), seed=1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(0, 40), min_size=1, max_size=5)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from(["shared", "separate"]),
    st.booleans(),
)  # fmt: skip
def test_every_token_has_one_place_and_stands_behind_its_own_prompt(sizes, rows, mode, one_length):
    groups = [group(prompt, lengths) for prompt, lengths in sizes]
    samples = [sample for one in groups for sample in one]
    passes = pack_rows(groups, tokens=40, row_length=112, rows=rows, mode=mode, one_length=one_length)
    if one_length:  # one program
        assert {(one.tokens.shape, one.places.shape) for one in passes} <= {((rows, 112), (rows, 112))}
    found = {}
    for one in passes:
        assert one.tokens.shape[0] == rows and one.tokens.shape[1] in row_lengths(112)
        branches = np.zeros_like(one.tokens) if one.branches is None else one.branches
        for row, slot in zip(*np.nonzero(one.places < len(samples) * 40)):
            response, t = divmod(int(one.places[row, slot]), 40)
            sample, at = samples[response], one.predictors[row, slot]
            # The predictor sees exactly the prompt and the response's tokens before this one, in order, at their positions.
            same = one.segment_ids[row] == one.segment_ids[row, at]
            seen = np.flatnonzero(same & np.isin(branches[row], [0, branches[row, at]]))
            seen = seen[seen <= at]
            assert tuple(one.tokens[row, seen]) == (*sample.prompt_ids, *sample.ids[:t])
            assert one.positions[row, seen].tolist() == list(range(len(seen)))
            assert one.targets[row, slot] == sample.ids[t]
            assert (response, t) not in found
            found[response, t] = True
    assert len(found) == sum(len(sample.ids) for sample in samples)


def test_a_group_is_divided_to_fill_rows_and_one_longer_than_a_row_is_refused():
    passes = pack_rows([group(10, [50] * 8)], tokens=64, row_length=128, rows=2)
    held = [
        sorted(set((one.places[r][one.places[r] < 512] // 64).tolist())) for one in passes for r in range(2)
    ]
    assert sorted(i for row in held for i in row) == list(range(8)) and max(map(len, held)) == 2
    with pytest.raises(UserError, match="a prompt with a response of 140 tokens is longer than a row"):
        pack_rows([group(100, [40])], tokens=64, row_length=128)


def test_lengths_are_few_and_hold_the_longest_row():
    assert row_lengths(12288)[-1] == 12288 and len(row_lengths(12288)) == 12
    assert all(length % 128 == 0 for length in row_lengths(12288))
    assert row_lengths(50)[-1] == 64
    shapes = set()
    rng = np.random.default_rng(1)
    for _ in range(40):
        groups = [group(int(rng.integers(20, 400)), rng.integers(1, 200, 8)) for _ in range(4)]
        for one in pack_rows(groups, tokens=256, row_length=2048):
            shapes.add((one.tokens.shape, one.places.shape))
    assert len(shapes) <= 24


def test_rows_of_real_spread_are_full():
    """Lengths as widely spread as those of real answers: a log-normal with a tail of twenty times the median."""
    rng = np.random.default_rng(2)
    positions = tokens = 0
    for _ in range(10):
        groups = [
            group(int(np.clip(rng.lognormal(6.5, 0.7), 20, 8000)), np.clip(rng.lognormal(5.5, 0.9, 8), 1, 4000).astype(int))
            for _ in range(8)
        ]  # fmt: skip
        counts = count_rows(pack_rows(groups, tokens=4096, row_length=12288), 64, 4096)
        positions, tokens = positions + counts.positions, tokens + counts.tokens
    assert tokens / positions > 0.95


def _policy(algorithm, logprobs, entropy):
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.1, logprobs.shape).astype(np.float32) * ARRAYS.mask
    return policy_batch(
        algorithm,
        np.array([1, 0, 2, 2, 1, 1, 1, 1, 3, 0, 0, 1], np.float32),
        ARRAYS.groups,
        ARRAYS.mask,
        logprobs + noise,
        correct=np.arange(12) % 2 == 0,
        old_entropy=entropy,
        ref_logprobs=logprobs - 2 * noise,
        engine_logprobs=logprobs + 3 * noise,
        regions=rng.integers(0, 5, logprobs.shape),
        progress=2.0,
    )


def packed_gradient(graph, params, algorithm, policy, passes):
    denominator = policy_batch_denominator(algorithm, policy, max_length=64)
    if algorithm.kl_cov_ratio and len(passes) > 1:
        logprobs = sum(response_logprobs(graph, params, one, policy.mask)[0] for one in passes)
        policy = choose_penalised(algorithm, logprobs, policy)
    found = nothing_accumulated(params)
    step = jax.jit(partial(accumulate_pass, graph, algorithm))
    for one in passes:
        found = step(params, found, one, policy, denominator)
    return found


FAST = (("da_grpo", "paper"), ("kl_cov", "paper"), ("gspo", "release"))
CASES = [
    pytest.param(name, preset, marks=() if (name, preset) in FAST else pytest.mark.slow)
    for name in ALGORITHMS
    for preset in ("paper", "release")
]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_loss_gradient_and_metrics_equal_those_of_one_response_a_row(name, preset, decoder):
    algorithm = algorithm_preset(name, preset)
    if name == "kl_cov":
        algorithm = dataclasses.replace(algorithm, kl_cov_ratio=0.2)
    graph, params = nnx.split(decoder)
    sequences = pad_samples(GROUPS, max_prompt=96, max_response=64)
    policy = _policy(algorithm, *map(np.asarray, padded_logprobs(graph, params, sequences)))
    whole = jax.tree.map(lambda x: x[None], (sequences, policy))
    loss, sums, gradient = jax.jit(padded_gradient(graph, algorithm, max_response=64))(params, *whole)
    passes = pack_rows(GROUPS, tokens=64, row_length=256)
    assert len(passes) > 1
    found = packed_gradient(graph, params, algorithm, policy, passes)
    # Relative to the loss's terms, which cancel where advantages have both signs.
    np.testing.assert_allclose(
        found.loss, loss, rtol=1e-6, atol=1e-6 * float(jnp.abs(policy.advantages).max())
    )
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest)
    for a, b in zip(policy_metrics(found.sums), policy_metrics(sums), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mesh", ["1", "8", "data=2,fsdp=2,tensor=2"])
@pytest.mark.parametrize("mode", ["shared", "separate"])
def test_every_mesh_and_mode_gives_the_log_probabilities_of_one_response_a_row(mesh, mode, decoder):
    graph, params = nnx.split(decoder)
    expected = padded_logprobs(graph, params, pad_samples(GROUPS, max_prompt=96, max_response=64))
    mesh = make_mesh(mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    with jax.set_mesh(mesh):
        passes = pack_rows(GROUPS, tokens=64, row_length=256, rows=rows, mode=mode)
        score = jax.jit(partial(response_logprobs, graph))
        found = [score(params, one, ARRAYS.mask) for one in passes]
    for which in range(2):
        np.testing.assert_allclose(sum(np.asarray(x[which]) for x in found), expected[which], atol=2e-5)
    np.testing.assert_array_equal(sum(np.asarray(x[2], int) for x in found), ARRAYS.mask)


@pytest.mark.parametrize("length", [64, 600])
@pytest.mark.parametrize("implementation", ["xla", "dense"])
def test_siblings_and_neighbours_do_not_leak_in_values_or_gradients(length, implementation):
    """The gradient of one branch reaches its own tokens and its prompt, and is exactly 0 everywhere else."""
    rng = np.random.default_rng(4)
    sizes = np.array([5, 3, 4, 6, 2, 4]) * (length // 24)
    segments = np.repeat([1, 1, 1, 2, 2, 2], sizes)
    branches = np.repeat([0, 1, 2, 0, 1, 2], sizes)
    padding = (0, length - len(segments))
    segments, branches = (jnp.asarray(np.pad(x, padding)[None], jnp.int32) for x in (segments, branches))
    q, k, v = (jnp.asarray(rng.normal(size=(1, length, heads, 16)), jnp.float32) for heads in (4, 2, 2))

    def out(q, k, v):
        if implementation == "xla":
            return attend(q, k, v, segments, branches, implementation="xla")
        return jax.nn.dot_product_attention(q, k, v, mask=segment_mask(segments, branches))

    mine = (segments == 2) & (branches == 2)
    gradients = jax.grad(lambda *x: (out(*x) ** 2 * mine[..., None, None]).sum(), argnums=(1, 2))(q, k, v)
    allowed = np.asarray((segments == 2) & ((branches == 0) | (branches == 2)))[0]
    for gradient in gradients:
        size = np.abs(np.asarray(gradient)[0]).sum((1, 2))
        assert (size[~allowed] == 0).all() and (size[allowed] > 0).all()
    if implementation == "xla":
        dense = jax.nn.dot_product_attention(q, k, v, mask=segment_mask(segments, branches))
        inside = np.asarray(segments)[0] > 0
        np.testing.assert_allclose(
            np.asarray(out(q, k, v))[0, inside], np.asarray(dense)[0, inside], atol=2e-6
        )
        both = [
            jax.grad(lambda *x, f=f: (f(*x) ** 2 * (segments > 0)[..., None, None]).sum(), argnums=(0, 1, 2))(
                q, k, v
            )
            for f in (out, lambda *x: jax.nn.dot_product_attention(*x, mask=segment_mask(segments, branches)))
        ]
        for a, b in zip(*both, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_splash_refuses_shared_prompts():
    with pytest.raises(UserError, match="attention splash cannot share a prefix among continuations"):
        attend(
            *(jnp.zeros((1, 128, 2, 128)) for _ in range(3)),
            jnp.zeros((1, 128), jnp.int32),
            jnp.zeros((1, 128), jnp.int32),
            implementation="splash_interpret",
        )
