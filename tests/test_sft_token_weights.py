"""TSFT and RSFT: every learned token counts by its region, by the equations of sft/token_weights.py written out again here."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcore_jax import UserError, load_hf
from dcore_jax.cli.options import parse_options
from dcore_jax.data import load_samples
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.nano import NanoConfig, embedded_data, embedded_model
from dcore_jax.regions import Region, RegionValues
from dcore_jax.sft import LossConfig, PackingConfig, SFTConfig, train
from dcore_jax.sft.step import Batch, loss_sum, predicted_weights
from dcore_jax.sft.token_weights import measured_regions, region_table, store_regions, weighted_store
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return embedded_model(tmp_path_factory.mktemp("nano"), NanoConfig(hidden=64, layers=1), 0)


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    data = embedded_data(tmp_path_factory.mktemp("data"), "toolworld:24,subtasks=1", 0)
    return load_samples(data, load_tokenizer(folder), max_length=384, progress=False)[0]


def config(folder, output, **changes):
    fixed = SFTConfig(
        model=str(folder),
        data=("toolworld:24,subtasks=1",),
        output=str(output),
        mesh="1",
        steps=3,
        rows=2,
        packing=PackingConfig(length=256),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant"),
        compute=ComputeConfig(dtype="float32", remat="none"),
        checkpoint=CheckpointConfig(every=1),
    )
    return dataclasses.replace(fixed, **changes)


def rows_of(store, count):
    """The first samples, one a row, padded behind."""
    length = int(store.lengths[:count].max())
    fields = np.zeros((6, count, length), np.float32)
    for i in range(count):
        sample, n = store[i], len(store[i].tokens)
        weights = np.ones(n) if sample.weights is None else sample.weights
        fields[:, i, :n] = (
            sample.tokens, np.arange(n), np.ones(n), sample.loss_mask, sample.denominator_mask, weights
        )  # fmt: skip
    kinds = (np.int32, np.int32, np.int32, bool, bool)
    batch = Batch(*(jnp.asarray(x, kind) for x, kind in zip(fields, kinds)))
    return batch if store.weights is None else batch._replace(weights=jnp.asarray(fields[5]))


def learned_text(store, tokenizer, regions, wanted, sample):
    """The learned tokens of one sample in these regions, as text."""
    inside = slice(store.offsets[sample], store.offsets[sample + 1])
    chosen = store.loss_mask[inside] & np.isin(regions[inside], wanted)
    return tokenizer.decode(store.tokens[inside][chosen].tolist())


def test_regions_are_found_on_the_learned_tokens_alone(store, folder):
    tokenizer = load_tokenizer(folder)
    regions = store_regions(store, tokenizer)
    assert set(np.unique(regions[~store.loss_mask])) == {Region.OUTSIDE}
    calls = [i for i in range(len(store)) if learned_text(store, tokenizer, regions, [Region.NAME], i)]
    assert len(calls) > 5
    for i in calls:
        turn = learned_text(store, tokenizer, regions, list(Region), i)
        name = learned_text(store, tokenizer, regions, [Region.NAME], i)
        arguments = learned_text(store, tokenizer, regions, [Region.PARAMETERS], i)
        assert f"{name}({arguments}" in turn  # a token such as `")]` is mostly syntax


def test_tsft_is_the_weighted_mean_written_out_by_hand(store, folder):
    regions = store_regions(store, load_tokenizer(folder))
    loss = LossConfig(
        "tsft", weights=RegionValues(outside=1.0, format=2.0, name=3.0, parameters=5.0, thinking=0.5)
    )
    weighted = weighted_store(store, regions, region_table(loss), mean_one=False)
    by_region = {
        Region.OUTSIDE: 1,
        Region.FORMAT: 2,
        Region.NAME: 3,
        Region.PARAMETERS: 5,
        Region.THINKING: 0.5,
    }
    model, value, total = load_hf(folder), 0.0, 0.0
    for i in range(2):
        sample = store[i]
        logprobs = jax.nn.log_softmax(model(sample.tokens[None])[0].astype(np.float32))
        for t in np.flatnonzero(sample.loss_mask):
            w = by_region[Region(int(regions[store.offsets[i] + t]))]
            value -= w * float(logprobs[t - 1, sample.tokens[t]])
            total += w
    graph, params = nnx.split(model)
    row = rows_of(weighted, 2)
    assert float(predicted_weights(row, row.denominator_mask).sum()) == total
    np.testing.assert_allclose(loss_sum(graph, params, row), value, rtol=2e-5)

    ones = weighted_store(store, regions, np.ones(5, np.float32), mean_one=False)
    plain, of_ones = (loss_sum(graph, params, rows_of(which, 2)) for which in (store, ones))
    assert float(plain) == float(of_ones) != float(loss_sum(graph, params, row))


def test_rsft_takes_the_inverse_of_each_regions_entropy_with_mean_one_over_a_turn(store, folder):
    regions = store_regions(store, load_tokenizer(folder))
    model, sums, counts = load_hf(folder), np.zeros(5), np.zeros(5)
    for i in range(2):
        sample = store[i]
        p = np.asarray(jax.nn.softmax(model(sample.tokens[None])[0].astype(np.float32)), np.float64)
        entropy = -(p * np.log(p)).sum(-1)
        for t in np.flatnonzero(sample.loss_mask):
            region = regions[store.offsets[i] + t]
            sums[region] += entropy[t - 1]
            counts[region] += 1
    graph, params = nnx.split(model)
    labelled = rows_of(dataclasses.replace(store, weights=regions.astype(np.float32)), 2)
    batch = jax.tree.map(lambda x: x[None], labelled)
    found = jax.jit(partial(measured_regions, graph))(params, batch._replace(weights=None), batch.weights)
    expected = np.divide(sums, counts, out=np.full(5, np.nan), where=counts > 0)
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-4)

    loss = LossConfig("rsft", weight_min=0.19, weight_max=0.3)
    entropies = np.array([2.0, 8.0, 4.0, 2.0, 5.0], np.float32)  # clipped below, inside, above, inside
    table = region_table(loss, entropies)
    np.testing.assert_allclose(
        table, [0.3, 0.19, 0.25, 0.3, 0.2], rtol=1e-6
    )  # text outside keeps 1, then the bound
    np.testing.assert_allclose(
        region_table(dataclasses.replace(loss, entropy_weights="collision", weight_max=8.0), entropies)[1:],
        1 / (1 - np.exp(-entropies[1:])),
        rtol=1e-6,
    )
    weighted = weighted_store(store, regions, table, mean_one=True)
    for i in range(len(store)):
        sample = weighted[i]
        np.testing.assert_allclose(sample.weights[sample.loss_mask].mean(), 1, rtol=1e-5)
        raw = table[regions[store.offsets[i] : store.offsets[i + 1]]][sample.loss_mask]
        np.testing.assert_allclose(sample.weights[sample.loss_mask], raw / raw.mean(), rtol=1e-5)


def test_a_run_that_goes_on_keeps_the_weights_that_were_measured_before_its_first_step(
    folder, tmp_path, capsys
):
    def weights(**changes):
        train(config(folder, tmp_path / "run", loss=LossConfig("rsft"), **changes))
        return re.findall(r"loss +rsft, weights outside 1 .*", capsys.readouterr().out)

    (measured,) = weights(steps=1, mesh="2")
    assert re.search(r"name \d\.\d+ \(\d+ tokens, \d\.\d+ nats\)", measured)
    assert weights(steps=2) == [measured]


def test_a_number_that_the_loss_does_not_use_is_refused_by_name():
    with pytest.raises(UserError, match=r"loss.weights changes nothing in rsft: it is for --loss tsft"):
        LossConfig("rsft", weights=RegionValues(name=1.0))
    with pytest.raises(UserError, match=r"loss.weight_min=0.0 must be above 0"):
        LossConfig("rsft", weight_min=0.0)
    with pytest.raises(
        UserError, match="loss tsft finds its regions in assistant turns alone; set loss_mask last_turn"
    ):
        SFTConfig(loss=LossConfig("tsft"), loss_mask="release")

    def parsed(*arguments):
        return parse_options(SFTConfig, arguments, description="", default_config=lambda _: None)

    assert parsed("--loss", "tsft", "--loss.weights.name", "4").loss.weights.name == 4
    with pytest.raises(UserError, match=r"--loss.weights.name is no option here: it is for --loss tsft"):
        parsed("--loss.weights.name", "4")
