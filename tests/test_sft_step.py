"""One optimizer step of SFT: packing, accumulation and meshes change nothing; the optimizer equals torch's."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from conftest import torch_config, torch_model
from dcore_jax import Compute, load_hf
from dcore_jax.mesh import make_mesh, put_global
from dcore_jax.models import model_config_from_hf
from dcore_jax.sft.step import (
    Batch,
    loss_sum,
    make_train_step,
    predicted,
)
from dcore_jax.training import OptimizerConfig, TrainState, learning_rate_schedule, make_optimizer
from dcore_jax.weights import hf_tensors, load_decoder, new_decoder

VOCAB = 128


def random_batch(seed=0, rows=8, length=32, micro=1):
    """Rows of several segments with padding at the end, and a loss mask over about half of the tokens."""
    rng = np.random.default_rng(seed)
    tokens, positions, ids = np.zeros((3, rows, length), np.int32)
    for row in range(rows):
        start, segment = 0, 1
        while (size := int(rng.integers(3, 12))) + start <= length - 2:
            tokens[row, start : start + size] = rng.integers(1, VOCAB, size)
            positions[row, start : start + size] = np.arange(size)
            ids[row, start : start + size] = segment
            start, segment = start + size, segment + 1
    mask = (rng.random((rows, length)) < 0.5) & (ids > 0)
    fields = (tokens, positions, ids, mask, mask | (rng.random((rows, length)) < 0.1) & (ids > 0))
    return Batch(*(x.reshape(micro, rows // micro, length) for x in fields))


def fresh_decoder():
    fields = torch_config("qwen3_bias", vocab_size=VOCAB).to_dict()
    return new_decoder(model_config_from_hf(fields), compute=Compute(), seed=1)


small_decoder = cache(fresh_decoder)  # for tests that change nothing of it


def started(model, optimizer, ema=False):
    graph, params = nnx.split(model)
    return graph, TrainState(
        params,
        optimizer.init(params),
        params if ema else None,
        jnp.zeros((), jnp.int32),
        jax.random.PRNGKey(0),
    )


def close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), a, b)


def test_packed_equals_unpacked_in_loss_and_gradient():
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), random_batch(rows=2))
    graph, params = nnx.split(small_decoder())
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss_sum(graph, p, batch)))(params)

    # Each segment in a row of its own, padded behind: causal attention never sees the padding.
    segments, weights = [], []
    for row in range(2):
        for segment in range(1, int(batch.segment_ids[row].max()) + 1):
            at = np.flatnonzero(np.asarray(batch.segment_ids[row]) == segment)
            segments.append(np.pad(batch.tokens[row, at], (0, 12 - len(at))))
            weights.append(np.pad(batch.loss_mask[row, at][1:], (0, 12 - len(at))).astype(np.float32))
    tokens, weights = np.stack(segments), np.stack(weights)

    @jax.jit
    def separately(params):
        logprobs = jax.nn.log_softmax(nnx.merge(graph, params)(tokens)[:, :-1])
        return -(weights * jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]).sum()

    expected, expected_gradient = jax.value_and_grad(separately)(params)
    assert float(expected) > 10
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected_gradient))
    close(gradient, expected_gradient, 1e-5 * scale)


def test_the_first_token_of_a_segment_is_never_predicted_across_the_border():
    ids = jnp.array([[1, 1, 2, 2, 2, 0, 0]])
    everywhere = jnp.ones_like(ids, bool)
    batch = Batch(ids, ids, ids, everywhere, everywhere)
    assert predicted(batch, everywhere).astype(int).tolist() == [[1, 0, 1, 1, 0, 0, 0]]


def test_accumulation_changes_nothing():
    optimizer = optax.sgd(1.0)
    graph, state = started(small_decoder(), optimizer)
    step = jax.jit(make_train_step(graph, optimizer))
    once, metrics_once = step(state, random_batch())
    for micro in (2, 4):
        parts = random_batch(micro=micro)
        several, metrics_several = step(state, parts)
        close(once.params, several.params, 1e-6)
        close(metrics_once._asdict(), metrics_several._asdict(), 1e-5)
        # The microbatches differ in their number of tokens, so that a mean of means would show.
        parts = jax.tree.map(jnp.asarray, parts)
        counts = predicted(parts, parts.denominator_mask).sum((1, 2))
        assert len(set(counts.tolist())) > 1


TWENTY = make_optimizer(OptimizerConfig(weight_decay=0.01), lambda step: 1e-3)


def twenty_losses(decoder, put):
    graph, state = started(decoder, TWENTY)
    step = jax.jit(make_train_step(graph, TWENTY))
    found = []
    for i in range(20):
        state, metrics = step(state, put(random_batch(seed=i % 4)))
        found.append(float(metrics.loss))
    return found


@pytest.fixture(scope="module")
def source_and_losses_alone(tmp_path_factory):
    source = tmp_path_factory.mktemp("twenty") / "model"
    torch_model("qwen3_bias", vocab_size=VOCAB).save_pretrained(source)
    return source, twenty_losses(load_decoder(source), lambda batch: batch)


@pytest.mark.parametrize("mesh", ["1", "8", "data=2,fsdp=2,tensor=2", "data=8", "tensor=2"])
def test_twenty_steps_have_the_same_losses_on_every_mesh(mesh, source_and_losses_alone):
    source, alone = source_and_losses_alone
    where = make_mesh(mesh)
    with jax.set_mesh(where):
        on_mesh = twenty_losses(
            load_decoder(source, mesh=where), lambda batch: put_global(where, (None, "batch", None), batch)
        )
    assert alone[-1] < alone[0] - 0.2
    np.testing.assert_allclose(on_mesh, alone, atol=1e-4)


def test_an_optimizer_step_equals_torch_adamw_with_clipping(checkpoints):
    reference, model = torch_model("qwen3"), load_hf(checkpoints["qwen3"])
    # A large epsilon: with the usual 1e-8 the sign of a gradient of 1e-9, which is rounding, decides a whole step.
    config = OptimizerConfig(
        learning_rate=1e-2, weight_decay=0.1, clip_norm=0.5, schedule="constant", warmup=0.0, epsilon=1e-2
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [p for n, p in reference.named_parameters() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for n, p in reference.named_parameters() if p.ndim != 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
    )
    optimizer = make_optimizer(config, learning_rate_schedule(config, 10))
    graph, state = started(model, optimizer)
    step = jax.jit(make_train_step(graph, optimizer))
    tokens = np.random.default_rng(0).integers(0, 131, (1, 2, 16)).astype(np.int32)
    mask = np.ones_like(tokens, bool)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
    batch = Batch(tokens, positions, mask.astype(np.int32), mask, mask)
    for _ in range(3):
        state, metrics = step(state, batch)
        adamw.zero_grad()
        logits = reference(torch.tensor(tokens[0]).long()).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, 131), torch.tensor(tokens[0, :, 1:]).long().reshape(-1)
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        assert norm > 0.5
        np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-4)
        adamw.step()
    theirs = {name: p.detach().numpy() for name, p in reference.named_parameters()}
    for name, ours in hf_tensors(nnx.merge(graph, state.params)):
        np.testing.assert_allclose(ours, theirs[name], atol=1e-5, err_msg=name)


def test_a_step_that_is_not_finite_moves_nothing_and_says_so():
    optimizer = optax.adam(1e-2)
    model = fresh_decoder()
    model.norm.scale.set_value(model.norm.scale.get_value().at[0].set(jnp.inf))
    graph, state = started(model, optimizer, ema=True)
    new, metrics = jax.jit(make_train_step(graph, optimizer, ema_decay=0.9))(state, random_batch())
    assert not bool(metrics.finite)
    jax.tree.map(
        np.testing.assert_array_equal,
        (new.params, new.optimizer, new.ema),
        (state.params, state.optimizer, state.ema),
    )


def test_the_moving_average_follows_the_parameters():
    optimizer = optax.sgd(0.1)
    graph, state = started(small_decoder(), optimizer, ema=True)
    new, _ = jax.jit(make_train_step(graph, optimizer, ema_decay=0.75))(state, random_batch())
    close(new.ema, jax.tree.map(lambda old, p: 0.75 * old + 0.25 * p, state.params, new.params), 1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_for_the_warm_up_and_then_follows_its_schedule(schedule):
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=2e-3, warmup=0.1, schedule=schedule), 100)
    values = np.array([float(rate(step)) for step in range(100)])
    np.testing.assert_allclose(values[:10], 2e-3 * np.arange(1, 11) / 10, rtol=1e-6)
    progress = np.arange(90) / 90
    expected = {
        "cosine": 0.5 * (1 + np.cos(np.pi * progress)),
        "linear": 1 - progress,
        "constant": np.ones(90),
    }[schedule]
    np.testing.assert_allclose(values[10:], 2e-3 * expected, atol=1e-8)


def test_steady_state_compiles_nothing():
    optimizer = optax.adam(1e-3)
    graph, state = started(fresh_decoder(), optimizer)
    step = jax.jit(make_train_step(graph, optimizer), donate_argnums=0)
    for seed in range(4):
        state, _ = step(state, random_batch(seed=seed))
    assert step._cache_size() == 1


def weighted(batch, weights):
    return batch._replace(weights=np.asarray(weights, np.float32))


def test_weights_of_tokens_make_a_weighted_mean():
    batch, optimizer = random_batch(), optax.sgd(1.0)
    graph, state = started(small_decoder(), optimizer)
    step = jax.jit(make_train_step(graph, optimizer))
    plain, metrics = step(state, batch)
    # Weights that are all equal change nothing; those of 0 are as tokens outside both masks.
    for equal in (1.0, 0.25):
        same, same_metrics = step(state, weighted(batch, np.full(batch.tokens.shape, equal)))
        close(same.params, plain.params, 1e-6)
        np.testing.assert_allclose(same_metrics.loss, metrics.loss, rtol=1e-5)
    rng = np.random.default_rng(3)
    half = rng.random(batch.tokens.shape) < 0.5
    without, _ = step(
        state,
        batch._replace(loss_mask=batch.loss_mask & half, denominator_mask=batch.denominator_mask & half),
    )
    close(step(state, weighted(batch, half))[0].params, without.params, 1e-6)

    weights = rng.random(batch.tokens.shape).astype(np.float32)
    _, found = step(state, weighted(batch, weights))
    logits = nnx.merge(graph, state.params)(batch.tokens[0], batch.positions[0], batch.segment_ids[0])
    logprobs = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))
    on_device = jax.tree.map(jnp.asarray, batch)
    predicts = np.asarray(predicted(on_device, on_device.loss_mask))[0]
    counted = np.asarray(predicted(on_device, on_device.denominator_mask))[0]
    following = np.roll(weights[0], -1, -1)
    taken = np.take_along_axis(logprobs, np.roll(batch.tokens[0], -1, -1)[..., None], -1)[..., 0]
    expected = -(taken * following * predicts).sum() / (following * counted).sum()
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)


def test_weighted_microbatches_are_the_weighted_batch():
    optimizer = optax.sgd(1.0)
    graph, state = started(small_decoder(), optimizer)
    step = jax.jit(make_train_step(graph, optimizer))
    rng = np.random.default_rng(0)
    whole = weighted(random_batch(), rng.random((1, 8, 32)))
    parts = weighted(random_batch(micro=4), whole.weights.reshape(4, 2, 32))
    close(step(state, whole)[0].params, step(state, parts)[0].params, 1e-6)
