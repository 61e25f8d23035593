"""The native engine against transformers, the decoder's full forward pass, and itself with other requests in the batch."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from conftest import CHECKPOINTS, torch_model
from dcore_jax import UserError, load_hf
from dcore_jax.engines import Engine, NativeEngine, Request, SamplingParams, fan_out
from dcore_jax.engines.native.cache import LayerCache, attend_to_cache, block_sizes, bucket, capacity
from dcore_jax.mesh import make_mesh

VOCAB = 131
RNG = np.random.default_rng(0)


def prompts(*lengths):
    return [tuple(RNG.integers(0, VOCAB, n).tolist()) for n in lengths]


# Every kind of length: alone, short, at the edge of the first bucket (64 tokens and the last one), beyond it.
PROMPTS = prompts(1, 2, 5, 34, 64, 65, 66, 90)
GREEDY = SamplingParams(max_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def model(checkpoints):
    return load_hf(checkpoints["qwen3"])


@pytest.fixture(scope="module")
def engine(model):
    return NativeEngine(model, slots=4)


def full_forward_logprobs(model, sample, temperature=1.0):
    """log-softmax of the whole sequence's logits in float64, at the sampled tokens."""
    tokens = np.array([sample.prompt_ids + sample.ids], np.int32)
    padded = np.pad(tokens, ((0, 0), (0, 128 - tokens.shape[1])))  # one shape, one program; causal
    logits = np.asarray(nnx.jit(lambda m, t: m(t))(model, padded), np.float64)[0] / temperature
    logits = logits[len(sample.prompt_ids) - 1 : tokens.shape[1] - 1]
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(sample.ids)), list(sample.ids)]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_tokens_equal_transformers(name, checkpoints):
    reference = torch_model(name)
    engine = NativeEngine(load_hf(checkpoints[name]), slots=4, first_length=128)
    samples = engine.generate([Request(p, GREEDY) for p in PROMPTS[:5]])
    for prompt, sample in zip(PROMPTS[:5], samples, strict=True):
        with torch.no_grad():
            expected = reference.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0,
            )[0, len(prompt) :]  # fmt: skip
        assert list(sample.ids) == expected.tolist()
        assert sample.finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_equal_a_full_forward_pass_before_top_p_and_top_k(temperature, model, engine):
    sampling = SamplingParams(max_tokens=12, temperature=temperature, top_p=0.9, top_k=40)
    samples = engine.generate([Request(p, replace(sampling, seed=i)) for i, p in enumerate(PROMPTS)])
    for sample in samples:
        assert len(sample.logprobs) == len(sample.ids) == 12
        expected = full_forward_logprobs(model, sample, temperature or 1.0)
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch_mates_bit_for_bit(model):
    wanted = [Request(p, SamplingParams(max_tokens=20, seed=i, top_p=0.95)) for i, p in enumerate(PROMPTS)]
    noise = [
        Request(p, SamplingParams(max_tokens=n, seed=99))
        for n, p in enumerate(prompts(3, 90, 41, 60, 11, 120), start=5)
    ]
    engine = NativeEngine(model, slots=4)
    alone = [engine.generate([request])[0] for request in wanted]
    assert len({sample.ids for sample in alone}) == len(alone)
    orders = [wanted, wanted[::-1], [*noise[:3], *wanted, *noise[3:]]]
    for steps, requests in zip((32, 3, 7), orders):
        samples = NativeEngine(model, slots=4, steps_per_dispatch=steps).generate(requests)
        together = dict(zip(requests, samples))
        assert [together[request] for request in wanted] == alone


def test_equal_seeds_repeat_and_a_group_differs_in_seeds_only(engine):
    request = Request(PROMPTS[4], SamplingParams(max_tokens=8, seed=5), "q")
    group = fan_out(request, 6)
    assert [member.id for member in group] == [f"q/{i}" for i in range(6)]
    assert fan_out(request, 3) == group[:3]
    first, again = engine.generate(group), engine.generate(group)
    assert first == again
    assert [sample.request_id for sample in first] == [f"q/{i}" for i in range(6)]
    assert len({sample.ids for sample in first}) == 6
    groups = [fan_out(replace(request, sampling=SamplingParams(seed=i)), 8) for i in range(50)]
    assert len({member.sampling.seed for group in groups for member in group}) == 400


def test_a_group_prefills_its_prompt_once(model):
    engine = NativeEngine(model, slots=3)
    group = fan_out(Request(PROMPTS[6], SamplingParams(max_tokens=4)), 8)
    shared = engine.generate(group)
    assert engine.stats.prefilled_tokens == len(PROMPTS[6]) - 1
    assert engine.stats.prompt_tokens == 8 * len(PROMPTS[6])
    assert shared[5] == engine.generate([group[5]])[0]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=9),
    stop=st.integers(0, VOCAB - 1),
)
@settings(max_examples=15, deadline=None)
def test_any_mix_of_lengths_ends_for_the_right_reason(lengths, stop, engine):
    rng = np.random.default_rng(stop)
    requests = [
        Request(
            tuple(rng.integers(0, VOCAB, n).tolist()),
            SamplingParams(max_tokens=m, seed=n, stop_token_ids=(stop, 7)),
            i,
        )
        for i, (n, m) in enumerate(lengths)
    ]
    for (_, most), request, sample in zip(lengths, requests, engine.generate(requests), strict=True):
        assert (sample.request_id, sample.prompt_ids) == (request.id, request.prompt_ids)
        assert 1 <= len(sample.ids) <= most
        assert not {stop, 7} & set(sample.ids[:-1])
        stopped = sample.ids[-1] in (stop, 7)
        assert sample.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(sample.ids) == most
    assert engine.in_flight == 0


def test_the_first_token_may_be_the_stop_token(engine):
    free = engine.generate([Request(PROMPTS[2], GREEDY)])[0]
    many = (*range(100, 130), free.ids[0])  # more stops than the table had columns
    sample = engine.generate([Request(PROMPTS[2], replace(GREEDY, stop_token_ids=many))])[0]
    assert (sample.ids, sample.logprobs) == (free.ids[:1], free.logprobs[:1])
    assert sample.finish_reason == "stop"


def test_content_ids_leave_out_the_stop_token_and_nothing_else(engine):
    free = engine.generate([Request(PROMPTS[2], GREEDY)])[0]
    assert free.finish_reason == "length" and free.content_ids == free.ids
    stop = free.ids[3]
    stopped = engine.generate([Request(PROMPTS[2], replace(GREEDY, stop_token_ids=(stop,)))])[0]
    assert stopped.finish_reason == "stop" and stopped.ids[-1] == stop
    assert stopped.content_ids == stopped.ids[:-1]
    assert replace(stopped, finish_reason="overlong", ids=(), logprobs=()).content_ids == ()


def test_one_token_is_a_whole_sample(engine):
    many = engine.generate([Request(p, GREEDY) for p in PROMPTS])
    one = engine.generate([Request(p, replace(GREEDY, max_tokens=1)) for p in PROMPTS])
    assert [s.ids for s in one] == [s.ids[:1] for s in many]
    assert {s.finish_reason for s in one} == {"length"}


def test_eos_ends_a_sample_unless_ignored(model, engine):
    free = engine.generate([Request(PROMPTS[1], GREEDY)])[0]
    eos = free.ids[3]
    expected = free.ids[: free.ids.index(eos) + 1]
    with_eos = NativeEngine(model, slots=4, eos_token_ids=[eos])
    ended, ignored = with_eos.generate(
        [Request(PROMPTS[1], GREEDY), Request(PROMPTS[1], replace(GREEDY, ignore_eos=True))]
    )
    assert (ended.ids, ended.finish_reason) == (expected, "stop")
    assert (ignored.ids, ignored.finish_reason) == (free.ids, "length")


def test_a_steady_state_compiles_nothing(model):
    engine = NativeEngine(model, slots=4)
    rng = np.random.default_rng(1)

    def traffic(count):
        lengths = [
            (1, 3),
            (60, 60),
            *((int(rng.integers(1, 61)), int(rng.integers(1, 61))) for _ in range(count)),
        ]
        return [
            Request(
                tuple(rng.integers(0, VOCAB, n).tolist()), SamplingParams(max_tokens=m, seed=n, top_p=0.9)
            )
            for n, m in lengths
        ]

    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    try:
        for _ in range(3):
            engine.generate(traffic(12))
        seen = len(compilations)
        samples = engine.generate(traffic(20))
        assert len(samples) == 22
        assert len(compilations) == seen
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(3))
        assert len(compilations) > seen  # the listener works
    finally:
        jax.monitoring.clear_event_listeners()


def test_a_prompt_that_leaves_no_room_is_returned_and_counted(model):
    engine = NativeEngine(model, slots=2, max_length=40)
    fits, cut, over = engine.generate([Request(p, GREEDY) for p in (PROMPTS[2], PROMPTS[3], prompts(40)[0])])
    assert (fits.finish_reason, len(fits.ids)) == ("length", 12)
    assert (cut.finish_reason, len(cut.ids)) == ("length", 40 - 34)
    assert (over.finish_reason, over.ids, over.logprobs) == ("overlong", (), ())
    assert engine.stats._asdict() == {
        "requests": 3, "prompt_tokens": 5 + 34 + 40, "prefilled_tokens": 4 + 33, "generated_tokens": 18,
        "stop": 0, "length": 2, "overlong": 1,
    }  # fmt: skip


def test_a_sequence_may_have_max_length_tokens(model):
    expected = NativeEngine(model, slots=1).generate([Request(PROMPTS[3], replace(GREEDY, max_tokens=30))])[0]
    sample = NativeEngine(model, slots=1, max_length=64).generate(
        [Request(PROMPTS[3], replace(GREEDY, max_tokens=500))]
    )[0]
    assert sample == expected
    assert len(sample.prompt_ids) + len(sample.ids) == 64


def test_submitted_requests_are_polled_even_during_a_generate(engine):
    requests = [Request(p, replace(GREEDY, max_tokens=n), n) for n, p in enumerate(PROMPTS, start=1)]
    expected = {s.request_id: s for s in engine.generate(requests)}
    engine.submit(requests[:5])
    assert engine.in_flight == 5
    assert engine.generate(requests[5:]) == [expected[r.id] for r in requests[5:]]
    polled = []
    while engine.in_flight:
        polled += engine.poll()
    assert {s.request_id: s for s in polled} == {r.id: expected[r.id] for r in requests[:5]}
    assert engine.poll() == []


def test_new_weights_sample_with_their_version_and_without_old_keys(model, checkpoints):
    engine = NativeEngine(model, slots=2, weight_version=3)
    other = nnx.merge(nnx.split(model)[0], jax.tree.map(lambda x: x * 0.9, nnx.state(model)))
    request = Request(PROMPTS[4], GREEDY)
    before = engine.generate([request])[0]
    engine.submit([request])
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        engine.update_weights(other, 4)
    engine.poll()
    engine.update_weights(nnx.state(other), 4)
    after = engine.generate([request])[0]
    assert (before.weight_version, after.weight_version, engine.weight_version) == (3, 4, 4)
    np.testing.assert_allclose(after.logprobs, full_forward_logprobs(other, after), atol=1e-4)
    assert np.abs(np.subtract(before.logprobs, after.logprobs)).max() > 1e-3
    engine.update_weights(model, 5)
    assert engine.generate([request])[0] == replace(before, weight_version=5)
    with pytest.raises(UserError, match="version 6 have other names or shapes"):
        engine.update_weights(load_hf(checkpoints["qwen3_tied"]), 6)


def test_a_released_engine_holds_no_arrays_and_wakes_with_the_next_weights(model):
    engine = NativeEngine(model, slots=2)
    request = Request(PROMPTS[4], GREEDY)
    (before,) = engine.generate([request])
    held = {id(x) for x in jax.live_arrays()}
    engine.release()
    freed = held - {id(x) for x in jax.live_arrays()}
    assert len(freed) >= len(jax.tree.leaves(nnx.state(model)))
    with pytest.raises(RuntimeError, match="released and without new weights"):
        engine.generate([request])
    engine.close()
    engine = NativeEngine(model, slots=2)
    engine.release()
    engine.update_weights(model, 1)
    (after,) = engine.generate([request])
    assert (after.ids, after.weight_version) == (before.ids, 1)
    engine.submit([request])
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        engine.release()


def test_diverged_weights_raise(model):
    engine = NativeEngine(model, slots=2)
    broken = jax.tree.map(lambda x: x * np.nan, nnx.state(model))
    engine.update_weights(broken, 1)
    with pytest.raises(UserError, match="weights of version 1 give logits that are not finite"):
        engine.generate([Request(PROMPTS[2], GREEDY)])


def test_bf16_logprobs_stay_near_float32(checkpoints, model):
    engine = NativeEngine(load_hf(checkpoints["qwen3"], dtype="bfloat16", param_dtype="float32"), slots=4)
    samples = engine.generate(
        [Request(p, replace(GREEDY, temperature=1.0, seed=i)) for i, p in enumerate(PROMPTS[:4])]
    )
    gaps = np.concatenate([np.subtract(s.logprobs, full_forward_logprobs(model, s)) for s in samples])
    assert 0 < np.abs(gaps).max() < 0.2
    assert np.abs(gaps).mean() < 0.03


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    """A checkpoint whose every dimension two devices can share, and what one device samples from it."""
    folder = tmp_path_factory.mktemp("even") / "model"
    torch_model("qwen3_bias", vocab_size=132).save_pretrained(folder)
    requests = [
        Request(p, replace(GREEDY, temperature=t, seed=i))
        for i, p in enumerate(PROMPTS[:4])
        for t in (0.0, 1.0)
    ]
    return folder, requests, NativeEngine(load_hf(folder), slots=4).generate(requests)


@pytest.mark.parametrize(
    "text",
    [
        "data=2,fsdp=2,tensor=2",
        pytest.param("4", marks=pytest.mark.slow),
        pytest.param("tensor=2", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_samples_what_one_device_samples(text, even):
    folder, requests, expected = even
    mesh = make_mesh(text)
    engine = NativeEngine(load_hf(folder), slots=4, mesh=mesh)  # weights of one device go to the mesh
    assert [s.ids for s in engine.generate(requests)] == [s.ids for s in expected]
    engine.update_weights(load_hf(folder, mesh=mesh), 1)
    samples = engine.generate(requests)
    assert [s.ids for s in samples] == [s.ids for s in expected]
    for sample, one in zip(samples, expected, strict=True):
        np.testing.assert_allclose(sample.logprobs, one.logprobs, atol=1e-4)
    wanted = NamedSharding(mesh, P(("data", "fsdp"), "tensor", None, None))
    for block in jax.tree.leaves(engine._cache):
        assert block.sharding.is_equivalent_to(wanted, 4)
        assert block.addressable_shards[0].data.size * mesh.size == block.size
    engine.update_weights(load_hf(folder), 2)  # of one device again, for a later version
    assert [s.ids for s in engine.generate(requests)] == [s.ids for s in expected]


def test_the_cache_is_written_in_place(model):
    engine = NativeEngine(model, slots=4, first_length=64)
    engine.generate([Request(PROMPTS[2], GREEDY)])
    before = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(engine._cache)]
    engine.generate([Request(p, GREEDY) for p in PROMPTS[:4]])
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(engine._cache)] == before


def test_the_cache_grows_and_shrinks_with_its_requests(model):
    engine = NativeEngine(model, slots=2)
    capacities = []
    for n in (10, 150, 10):
        engine.generate([Request(prompts(n)[0], GREEDY)])
        capacities.append(capacity(engine._cache))
    assert capacities == [64, 192, 64]


@given(length=st.integers(1, 50_000))
@settings(max_examples=200, deadline=None)
def test_a_bucket_holds_its_length_with_little_waste(length):
    size = bucket(length)
    assert length <= size <= max(128, length * 3 // 2)
    assert bucket(size) == size
    assert block_sizes(2 * size)[: len(block_sizes(size))] == block_sizes(
        size
    )  # growing keeps the blocks there are


@pytest.mark.parametrize(
    "shape", [(4, 1, 4, 20), (3, 2, 2, 64)]
)  # rows, kv heads, query heads for each, head_dim
def test_attention_is_bitwise_equal_for_every_cache_length(shape):
    R, K, G, C = shape
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(R, 1, heads, C)), jnp.float32) for heads in (K * G, K, K))
    keys, values = (
        rng.normal(size=(R, K, C, 60)).astype(np.float32),
        rng.normal(size=(R, K, 60, C)).astype(np.float32),
    )
    positions = jnp.asarray([59, 0, 31, 40][:R], jnp.int32)
    outputs = {}
    for length in (64, 128, 192, 256, 384, 768, 2048):
        sizes = block_sizes(length)
        cache = LayerCache(
            (
                jnp.pad(keys, ((0, 0), (0, 0), (0, 0), (0, 4))),
                *(jnp.zeros((R, K, C, size)) for size in sizes[1:]),
            ),
            (
                jnp.pad(values, ((0, 0), (0, 0), (0, 4), (0, 0))),
                *(jnp.zeros((R, K, size, C)) for size in sizes[1:]),
            ),
        )
        outputs[length] = np.asarray(jax.jit(attend_to_cache)(q, k, v, positions, positions, cache)[0])
    for length, output in outputs.items():
        np.testing.assert_array_equal(output, outputs[64], err_msg=f"{length}")
    # And they are the right ones.
    row, last = 0, 59
    keys[row, :, :, last], values[row, :, last] = k[row, 0], v[row, 0]
    for head in range(K * G):
        scores = (
            np.asarray(q[row, 0, head], np.float64) @ keys[row, head // G].astype(np.float64) / np.sqrt(C)
        )
        weights = np.exp(scores - scores.max())
        expected = weights @ values[row, head // G].astype(np.float64) / weights.sum()
        np.testing.assert_allclose(outputs[64][row, 0, head], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 is not possible; it must be at least 1"),
        (
            {"temperature": 1e-38},
            "temperature=1e-38 is not possible; it must be 0 (greedy) or at least 1e-05",
        ),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 0}, "top_k=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_sampling_is_refused(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        SamplingParams(**fields)


def test_invalid_requests_and_arguments_raise_before_anything_starts(model, engine):
    good = Request(PROMPTS[0], GREEDY)
    for bad, message in [
        (Request((), GREEDY, "empty"), "request 'empty': prompt_ids is empty"),
        (
            Request((5, VOCAB), GREEDY, 7),
            f"request 7: prompt_ids holds {VOCAB}, outside the vocabulary of {VOCAB}",
        ),
        (Request((5, -1), GREEDY), "prompt_ids holds -1"),
        (Request((5,), replace(GREEDY, stop_token_ids=(2, 500))), "sampling.stop_token_ids holds 500"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            engine.generate([good, bad])
        assert engine.in_flight == 0
    with pytest.raises(UserError, match="max_position_embeddings is 512"):
        NativeEngine(model, max_length=513)
    with pytest.raises(UserError, match="slots=3 cannot be split over data and fsdp, 2 devices"):
        NativeEngine(model, slots=3, mesh=make_mesh("2"))
    with pytest.raises(UserError, match="tensor=2 does not divide num_key_value_heads=1"):
        NativeEngine(model, slots=4, mesh=make_mesh("tensor=2"))


def test_a_closed_engine_raises(model):
    engine = NativeEngine(model, slots=2)
    assert isinstance(engine, Engine)
    engine.submit([Request(PROMPTS[0], GREEDY)])
    engine.close()
    assert engine.in_flight == 0
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.generate([Request(PROMPTS[0], GREEDY)])


def test_the_worked_example_of_the_documentation_runs(checkpoints, capsys):
    text = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/engines.md", "exec"), {"folder": checkpoints["qwen3"]})
    assert "length" in capsys.readouterr().out


def test_a_kept_prefill_is_used_before_new_ones_evict_it(model):
    """The new prompts' prefills evict the kept one, which must have been inserted before that."""
    engine = NativeEngine(model, slots=8, max_length=64)
    first, *others = prompts(9, 10, 11, 12, 13, 14)
    request = Request(first, SamplingParams(max_tokens=3, seed=5))
    (alone,) = engine.generate([request])
    together = engine.generate([*(Request(ids, SamplingParams(max_tokens=3)) for ids in others), request])
    assert together[-1].ids == alone.ids
    engine.close()
