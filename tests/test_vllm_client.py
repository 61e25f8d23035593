"""The engine over HTTP with stub servers: order, faults, weight versions. Real vLLM is in test_vllm.py."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax import UserError, load_hf
from dcore_jax.algorithms import algorithm_preset
from dcore_jax.cli.options import parse_options
from dcore_jax.distill.config import DistillConfig
from dcore_jax.engines import Engine, EngineConfig, Request, SamplingParams, fan_out, open_engine
from dcore_jax.engines.vllm import engine as engine_module
from dcore_jax.engines.vllm.canary import Canary, EngineLogprobs, Reference, check_canary, reference_function
from dcore_jax.engines.vllm.engine import ServerEngine
from dcore_jax.engines.vllm.in_process import DEFAULT_MEMORY_FRACTION, InProcessEngine
from dcore_jax.engines.vllm.pool import Limits
from dcore_jax.engines.vllm.protocol import InvalidResponse, PreparedRequest
from dcore_jax.engines.vllm.server import OwnServer, ServerPlan
from dcore_jax.engines.vllm.sync import check_coverage, expected_tensors
from dcore_jax.models import read_model_config
from dcore_jax.rl import RLConfig, RolloutConfig, train
from dcore_jax.weights import export_decoder, new_decoder
from stub_vllm_server import VOCAB, stub_tokens

STUB = Path(__file__).with_name("stub_vllm_server.py")
EOS = (7,)
FAST = Limits(backoff=0.01, max_backoff=0.05, probe_interval=0.2, probe_timeout=0.4, recovery_timeout=30.0)


class StubPlan(ServerPlan):
    """A plan whose servers are stubs; its `arguments` are theirs."""

    def command(self, port):
        return [sys.executable, str(STUB), f"--port={port}", *self.arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The smallest Qwen3 there is."""
    fields = {
        "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu", "initializer_range": 0.3,
    }  # fmt: skip
    source = tmp_path_factory.mktemp("config")
    (source / "config.json").write_text(json.dumps(fields))
    return export_decoder(new_decoder(read_model_config(source)), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return load_hf(folder)


@pytest.fixture(scope="module", autouse=True)
def stub_tensors(model):
    os.environ["STUB_TENSORS"] = json.dumps(sorted(expected_tensors(model.config)))
    yield
    del os.environ["STUB_TENSORS"]


def own(folder, number=0, *arguments, **plan):
    return OwnServer(StubPlan(Path("model"), folder, 512, arguments=arguments, **plan), number)


def engine_of(servers, model, folder, **settings):
    given = {
        "max_length": 128,
        "eos_token_ids": EOS,
        "folder": folder,
        "limits": FAST,
        "startup_timeout": 120.0,
    }
    return ServerEngine(servers, model.config, **{**given, **settings})


@pytest.fixture(scope="module")
def two(model, tmp_path_factory):
    """An engine of two healthy stubs that take 20 ms for a response."""
    folder = tmp_path_factory.mktemp("two")
    servers = [own(folder, i, "--delay=0.02") for i in range(2)]
    engine = engine_of(servers, model, folder)
    yield engine, servers, folder
    engine.close()


def ask(server, path, body=None):
    request = urllib.request.Request(
        server.url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read() or "null")


def polled(engine):
    """All samples in flight, in the order in which they finish."""
    done = []
    while engine.in_flight:
        done += engine.poll()
    return done


def requests(count, tokens=6, seed=0):
    return [
        Request((1, 2, i % VOCAB), SamplingParams(max_tokens=tokens, seed=seed + i), i) for i in range(count)
    ]


def expected(request, weights, limit=None):
    params = request.sampling
    return stub_tokens(request.prompt_ids, params.seed, weights, limit or params.max_tokens, EOS)


def assert_samples(samples, asked, weights, version=0):
    """Every request has its own sample, in order, sampled by those weights."""
    assert [s.request_id for s in samples] == [r.id for r in asked]
    for sample, request in zip(samples, asked):
        ids, logprobs, reason = expected(request, weights)
        assert (list(sample.ids), list(sample.logprobs), sample.finish_reason) == (ids, logprobs, reason)
        assert sample.weight_version == version


def write_canary(model, folder, **changes):
    """Makes stubs that load weights from this folder give the trainer's canary log-probabilities, except for `changes`."""
    reference = reference_function(Canary(VOCAB), nnx.split(model)[0])(nnx.split(model)[1])
    given = {"prompt": reference.prompt.tolist(), "sampled": reference.sampled.tolist(), **changes}
    (Path(folder) / "stub_canary.json").write_text(json.dumps(given))


def push(engine, model, folder, version, **changes):
    """Updates the weights, with stubs that give the trainer's canary log-probabilities, except for `changes`."""
    write_canary(model, folder, **changes)
    engine.update_weights(model, version)
    return engine._target.name


# --- healthy servers ---


def test_samples_come_in_order_and_once_from_servers_that_share_the_load(two):
    engine, servers, _ = two
    assert isinstance(engine, Engine)
    before = [len(ask(s, "/stub/seen")["finished"]) for s in servers]
    asked = requests(40, seed=1000)
    assert_samples(engine.generate(asked), asked, "default")
    seen = [ask(s, "/stub/seen")["finished"][n:] for s, n in zip(servers, before)]
    assert sorted(seed for part in seen for _, seed in part) == [1000 + i for i in range(40)]
    assert min(len(part) for part in seen) >= 15
    assert engine.in_flight == 0 and engine.faults == {}


def test_submitted_requests_are_polled_even_during_a_generate(two):
    engine, _, _ = two
    asked = requests(10, seed=2000)
    engine.submit(asked)
    beside = requests(3, seed=3000)
    assert_samples(engine.generate(beside), beside, "default")
    assert engine.in_flight == 10
    assert_samples(sorted(polled(engine), key=lambda s: s.request_id), asked, "default")
    assert engine.poll() == []


def test_prompts_without_room_are_overlong_and_samples_end_at_max_length(two):
    engine, _, _ = two
    before = engine.stats
    long = Request(tuple(range(100)) + tuple(range(28)), SamplingParams(), "overlong")
    nearly = Request((1,) * 126, SamplingParams(max_tokens=50, seed=3, ignore_eos=True), "nearly")
    first, second = engine.generate([long, nearly])
    assert (first.finish_reason, first.ids) == ("overlong", ())
    assert second.finish_reason == "length" and len(second.ids) == 2
    assert engine.stats.overlong == before.overlong + 1 and engine.stats.requests == before.requests + 2


def test_stop_tokens_end_a_sample_and_stay_in_it(two):
    engine, _, _ = two
    asked = [Request((5,), SamplingParams(max_tokens=100, seed=s, stop_token_ids=(9,)), s) for s in range(20)]
    stopped = [s for s in engine.generate(asked) if s.finish_reason == "stop"]
    assert {s.ids[-1] for s in stopped} == {7, 9}
    ignoring = engine.generate(
        [Request((5,), SamplingParams(max_tokens=100, seed=s, ignore_eos=True)) for s in range(5)]
    )
    assert all(len(s.ids) == 100 for s in ignoring) and any(7 in s.ids for s in ignoring)


def test_a_server_never_has_more_requests_than_the_limit(model, tmp_path):
    server = own(tmp_path, 0, "--delay=0.02")
    engine = engine_of([server], model, tmp_path, limits=Limits(in_flight=3, queue=5))
    try:
        asked = requests(20)
        assert_samples(engine.generate(asked), asked, "default")
        assert ask(server, "/stub/seen")["busiest"] == 3
    finally:
        engine.close()


def test_requests_that_no_engine_could_serve_raise_before_any_is_sent(two):
    engine, servers, _ = two
    before = [len(ask(s, "/stub/seen")["began"]) for s in servers]
    with pytest.raises(UserError, match="request 'x': prompt_ids is empty"):
        engine.generate([*requests(3), Request((), id="x")])
    assert [len(ask(s, "/stub/seen")["began"]) for s in servers] == before


# --- weights ---


@pytest.mark.parametrize("sync", ["transfer", "disk"])
def test_each_update_has_a_version_that_every_sample_carries(sync, model, tmp_path):
    servers = [own(tmp_path, i, "--delay=0.02") for i in range(2)]
    engine = engine_of(servers, model, tmp_path, sync=sync)
    try:
        for version in (1, 2):
            name = push(engine, model, tmp_path, version)
            asked = requests(8)
            assert_samples(engine.generate(asked), asked, name, version)
        assert engine.weight_version == 2 and max(engine.canary_gaps.values()) < 1e-6
        assert len(list(tmp_path.glob("weights-*/model.safetensors"))) == 1  # the previous one is removed
        engine.submit(asked)
        with pytest.raises(RuntimeError, match="8 requests are in flight"):
            engine.update_weights(model, 3)
        calls = ask(servers[0], "/stub/seen")["pushes"]
        assert ("/finish_weight_update" in calls) == (sync == "transfer")
    finally:
        engine.close()
    assert not list(tmp_path.glob("weights-*"))


def test_a_canary_that_differs_from_the_trainer_stops_the_run(two, model):
    engine, _, folder = two
    with pytest.raises(
        UserError, match=r"after weight update 1 the canary's log-probabilities are .* nats off"
    ):
        push(engine, model, folder, 1, prompt=[-3.0] * 63)
    with pytest.raises(UserError, match="start the server with --logprobs-mode processed_logprobs"):
        push(engine, model, folder, 1, sampled=[-0.001] * VOCAB)
    name = push(engine, model, folder, 2)
    assert_samples(engine.generate(requests(2)), requests(2), name, 2)


def test_a_model_with_other_tensors_is_refused_before_anything_is_sent(model, tmp_path, monkeypatch):
    names = sorted(expected_tensors(model.config))
    monkeypatch.setenv("STUB_TENSORS", json.dumps(["model.other.weight", *names[1:]]))
    server = own(tmp_path)
    engine = engine_of([server], model, tmp_path)
    try:
        with pytest.raises(
            UserError, match=r"1 that we do not send \(model.other.weight\) and 1 of ours that it lacks"
        ):
            push(engine, model, tmp_path, 1)
        assert "/start_weight_update" not in ask(server, "/stub/seen")["pushes"]
    finally:
        engine.close()


def test_coverage_is_equality_of_sets():
    check_coverage({"a", "b"}, ["b", "a"], "x")
    for theirs in (["a"], ["a", "b", "c"]):
        with pytest.raises(UserError, match="another one than the trainer's"):
            check_coverage({"a", "b"}, theirs, "x")


def test_the_canary_detects_stale_weights_even_within_the_tolerance():
    rng = np.random.default_rng(0)
    old = rng.normal(-3, 1, 63).astype(np.float32)
    new = old + np.float32(5e-4)
    sampled = np.log(np.full(4, 0.25, np.float32))
    reference, previous = Reference(new, sampled), Reference(old, sampled)

    def check(prompt):
        logprobs = EngineLogprobs(prompt.tolist(), 1, float(sampled[1]))
        return check_canary(logprobs, reference, previous, dtype="float32", version=4, name="x")

    assert check(new + 1e-5) < 2e-5
    with pytest.raises(UserError, match="weight update 4 changed nothing"):
        check(old + 1e-5)


# --- faults: each row of the table in docs/vllm.md ---


@pytest.mark.parametrize("fault", ["status", "garbage", "nonsense", "forget"])
def test_one_invalid_response_is_retried_and_nothing_is_lost(fault, two, model):
    engine, servers, folder = two
    name = push(engine, model, folder, 5)
    ask(servers[0], "/stub/fault", {"fault": fault})
    asked = requests(16, seed=4000)
    faults = sum(engine.faults.values())
    assert_samples(engine.generate(asked), asked, name, 5)
    assert sum(engine.faults.values()) > faults


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_own_server_that_is_killed_or_hangs_in_mid_batch_is_restarted_with_the_current_weights(
    number, model, tmp_path
):
    server = own(tmp_path, 0, "--delay=0.1")
    engine = engine_of(
        [server],
        model,
        tmp_path,
        limits=Limits(in_flight=4, backoff=0.01, probe_interval=0.2, probe_timeout=0.4),
    )
    try:
        name = push(engine, model, tmp_path, 3)
        asked = requests(24)
        engine.submit(asked)
        done = []
        while len(done) < 6:
            done += engine.poll()
        os.killpg(server.process_group, number)
        done += polled(engine)
        assert server.starts == 2
        assert Counter(s.request_id for s in done) == Counter(range(24))
        assert_samples(sorted(done, key=lambda s: s.request_id), asked, name, 3)
        assert engine.faults
    finally:
        engine.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_requests_of_a_users_server_that_dies_or_hangs_go_to_the_others(number, model, tmp_path):
    servers = [own(tmp_path, i, "--delay=0.05") for i in range(2)]
    for server in servers:
        server.key = servers[0].key
        server.start()
    engine = engine_of([s.url for s in servers], model, tmp_path, key=servers[0].key, limits=FAST)
    try:
        name = push(engine, model, tmp_path, 1)
        asked = requests(60)
        engine.submit(asked)
        done = []
        while len(done) < 10:
            done += engine.poll()
        os.killpg(servers[0].process_group, number)
        done += polled(engine)
        assert Counter(s.request_id for s in done) == Counter(range(60))
        assert_samples(sorted(done, key=lambda s: s.request_id), asked, name, 1)
        if number == signal.SIGSTOP:  # it goes on, and serves again once it has recovered
            os.killpg(servers[0].process_group, signal.SIGCONT)
            count = len(ask(servers[0], "/stub/seen")["finished"])
            for _ in range(100):
                again = requests(8, seed=9000)
                assert_samples(engine.generate(again), again, name, 1)
                if len(ask(servers[0], "/stub/seen")["finished"]) > count:
                    break
                time.sleep(0.05)
            else:
                raise AssertionError("the server that went on was never asked again")
    finally:
        engine.close()
        for server in servers:
            server.stop()


def test_a_request_that_times_out_is_retried_on_another_server(two, model, tmp_path):
    _, servers, _ = two
    late = own(tmp_path, 0, "--fault=hang")
    late.key = servers[0].key
    late.start()
    limits = Limits(request_timeout=0.5, backoff=0.01)
    engine = engine_of(
        [late.url, servers[0].url], model, tmp_path, key=late.key, limits=limits, startup_timeout=120.0
    )
    try:
        asked = requests(4)
        assert_samples(engine.generate(asked), asked, ask(servers[0], "/weight_info")["weight_version"])
        assert engine.faults["no response in time"] >= 1
    finally:
        engine.close()
        late.stop()


def test_when_every_server_is_abandoned_the_run_stops_and_names_them(model, tmp_path):
    server = own(tmp_path, 0, "--delay=5")
    server.start()
    limits = Limits(recovery_timeout=0.3, backoff=0.01, max_backoff=0.05)
    engine = engine_of([server.url], model, tmp_path, key=server.key, limits=limits)
    try:
        engine.submit(requests(3))
        while not ask(server, "/stub/seen")["began"]:
            time.sleep(0.02)
        server.stop()
        with pytest.raises(UserError, match=r"no vLLM server is left: http://\S+: no connection for 0 s"):
            polled(engine)
    finally:
        engine.close()


def test_a_server_that_always_fails_stops_the_run_unless_another_one_serves(model, tmp_path):
    bad, good = own(tmp_path, 0, "--fault=garbage", "--keep-fault"), own(tmp_path, 1)
    engine = engine_of([bad, good], model, tmp_path)
    asked = requests(30)
    try:
        assert_samples(engine.generate(asked), asked, "default")
    finally:
        engine.close()
    engine = engine_of([bad], model, tmp_path)
    try:
        with pytest.raises(
            UserError, match=r"failed 8 times, last http://127.0.0.1:\d+: a response that is not JSON"
        ):
            engine.generate(asked[:1])
    finally:
        engine.close()


def test_a_server_that_dies_at_every_request_stops_the_run_with_its_log(model, tmp_path):
    engine = engine_of([own(tmp_path, 0, "--fault=crash", restarts=1)], model, tmp_path)
    try:
        with pytest.raises(UserError, match=r"the vLLM server ended 2 times.*the log is .*vllm_0.log"):
            engine.generate(requests(1))
    finally:
        engine.close()


def test_a_context_that_is_too_small_stops_the_run(two, model, tmp_path):
    with pytest.raises(UserError, match="serves 64 tokens of prompt and continuation, the run needs 128"):
        engine_of([own(tmp_path, 0, "--length=64")], model, tmp_path)
    engine, servers, _ = two
    for server in servers:
        ask(server, "/stub/fault", {"fault": "small"})
    try:
        with pytest.raises(UserError, match="refuses request 0: maximum context length is 8 tokens"):
            engine.generate(requests(1))
    finally:
        for server in servers:
            ask(server, "/stub/fault", {"fault": "none"})


def test_servers_that_cannot_be_used_are_named_at_the_start(two, model, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "_CONNECT_TIMEOUT", 0.5)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9: no connection for 0 s; is it up"):
        engine_of(["http://127.0.0.1:9"], model, tmp_path)
    _, servers, _ = two
    engine = engine_of([servers[0].url], model, tmp_path, key="wrong")
    with pytest.raises(UserError, match="refuses the API key; set VLLM_API_KEY"):
        engine.generate(requests(1))
    engine.close()

    class Broken(ServerPlan):
        def command(self, port):
            return [sys.executable, "-c", "raise RuntimeError('no such model')"]

    with pytest.raises(
        UserError, match=r"did not start \(RuntimeError: no such model\); the log is .*vllm_0.log"
    ):
        engine_of([OwnServer(Broken(Path("model"), tmp_path, 512))], model, tmp_path)
    with pytest.raises(UserError, match=r"no vLLM server: give --engine\.servers"):
        engine_of([], model, tmp_path)


# --- servers that we start ---


def test_an_own_server_listens_on_loopback_behind_a_key_that_is_not_on_its_command_line(two):
    _, servers, folder = two
    assert len({s.key for s in servers}) == 2 and all(len(s.key) >= 32 for s in servers)
    for server in servers:
        shown = Path(f"/proc/{server.process_group}/cmdline").read_bytes().decode()
        assert server.key not in shown
        assert server.log.parent == folder
    command = ServerPlan(Path("m"), folder, 64).command(1)
    assert "--host=127.0.0.1" in command and not any("trust" in part for part in command)


def test_vllms_share_of_the_gpu_is_passed_to_a_server_and_in_process(folder, monkeypatch):
    def flags(fraction):
        command = ServerPlan(folder, folder, 64, memory_fraction=fraction).command(1)
        return [part for part in command if "gpu-memory-utilization" in part]

    assert flags(None) == [] and flags(0.25) == ["--gpu-memory-utilization=0.25"]

    given = []
    vllm = SimpleNamespace(LLM=lambda **arguments: given.append(arguments["gpu_memory_utilization"]))
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    with patch.dict(os.environ):  # the engine sets vLLM's variables
        InProcessEngine(folder, max_length=64)
        InProcessEngine(folder, max_length=64, memory_fraction=0.25)
        InProcessEngine(folder, max_length=64, memory_fraction=1.0)
    assert given == [DEFAULT_MEMORY_FRACTION, 0.25, 1.0]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_of_the_gpu_outside_0_to_1_is_refused(fraction, folder):
    message = r"memory_fraction=\S+ is not possible; .* must be in \(0, 1\]"
    with pytest.raises(UserError, match=message):
        ServerPlan(folder, folder, 64, memory_fraction=fraction)
    with pytest.raises(UserError, match=message):
        InProcessEngine(folder, max_length=64, memory_fraction=fraction)


def test_the_supervisor_ends_the_server_when_the_run_is_killed(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(STUB.parent)!r})
from pathlib import Path
from dcore_jax.engines.vllm.server import OwnServer, ServerPlan
class StubPlan(ServerPlan):
    def command(self, port):
        return [sys.executable, {str(STUB)!r}, f"--port={{port}}"]
server = OwnServer(StubPlan(Path("m"), Path({str(tmp_path)!r}), 64))
server.start()
print(server.process_group, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == -signal.SIGKILL, run.stderr
    group = int(run.stdout)
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the server is still there")


# --- responses ---

PREPARED = PreparedRequest(Request((1, 2)), 3, frozenset({7}), 10)


def response(ids, logprobs=None, reason="length", **changes):
    content = [{"logprob": p} for p in ([-1.0] * len(ids) if logprobs is None else logprobs)]
    return {
        "choices": [{"token_ids": ids, "logprobs": {"content": content}, "finish_reason": reason, **changes}]
    }


def test_responses_that_fit_are_read_as_they_are():
    assert PREPARED.parse(response([1, 2, 3])) == ((1, 2, 3), (-1.0,) * 3, "length")
    assert PREPARED.parse(response([1, 7], reason="stop")) == ((1, 7), (-1.0,) * 2, "stop")
    assert PREPARED.parse(response([1, 2, 7], reason="length"))[2] == "stop"
    spans = [{"version": "a", "start": 0, "end": 3}]
    assert PREPARED.parse(response([1, 2, 3], weight_versions=spans), "a")[0] == (1, 2, 3)


@pytest.mark.parametrize(
    "payload",
    [
        response([1, 2]),  # ended by nothing
        response([1, 2, 3], reason="abort"),
        response([1, 2, 3], reason="stop"),
        response([7, 2, 3]),  # past its end
        response([1, 2, 3, 4]),
        response([1, 2, 10]),  # outside the vocabulary
        response([1, 2, -1]),
        response([1, 2, True]),
        response([1, 2, 3], logprobs=[-1.0, -1.0]),
        response([1, 2, 3], logprobs=[-1.0, float("nan"), -1.0]),
        response([1, 2, 3], logprobs=[-1.0, None, -1.0]),
        response([1, 2, 3], logprobs=[-1.0, 0.5, -1.0]),
        response([]),
        {"choices": []},
        {"choices": [{}]},
        [],
        None,
    ],
)
def test_responses_that_do_not_fit_are_invalid(payload):
    with pytest.raises(InvalidResponse):
        PREPARED.parse(payload)


@pytest.mark.parametrize(
    "spans",
    [
        None,
        [],
        [{"version": "b", "start": 0, "end": 3}],
        [{"version": "a", "start": 0, "end": 2}],
        [{"version": "b", "start": 0, "end": 1}, {"version": "a", "start": 1, "end": 3}],
    ],
)
def test_a_response_of_other_weights_or_of_two_is_invalid(spans):
    with pytest.raises(InvalidResponse, match="other weights"):
        PREPARED.parse(response([1, 2, 3], weight_versions=spans), "a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "token_ids", "logprobs", "content", "finish_reason"]), inner
        )
    ),
    max_leaves=8,
)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_no_response_raises_anything_else(payload):
    with pytest.raises(InvalidResponse):
        PREPARED.parse(payload)


def test_every_field_that_shapes_the_distribution_is_named_in_a_request():
    body = PreparedRequest.from_request(requests(1)[0], EOS, 128, VOCAB).body("m")
    named = set(body["sampling_params"])
    assert named >= {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    }
    assert named >= {"seed", "max_tokens", "stop_token_ids", "ignore_eos", "logprobs"}
    json.dumps(body)


# --- open_engine ---


def test_engines_open_by_name(folder):
    native = open_engine(EngineConfig(slots=2), folder, max_length=32, weight_version=4)
    group = fan_out(Request((1, 2), SamplingParams(max_tokens=2)), 2)
    assert [s.weight_version for s in native.generate(group)] == [4, 4]
    native.close()
    with pytest.raises(
        UserError, match=r"engine.servers is given but the engine is native; use --engine vllm-server"
    ):
        EngineConfig(servers=("http://x:1",))
    if jax.default_backend() == "cpu" and not _has_vllm():
        for name in ("vllm", "vllm-server"):  # without addresses a server is started here
            message = rf"engine {name} needs the package vllm: pip install 'dcore-jax\[vllm\]'"
            with pytest.raises(UserError, match=message):
                open_engine(EngineConfig(name=name), folder, max_length=32)


def test_a_missing_package_is_told_before_model_and_prompts_are_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for engine, package in (
        (EngineConfig(name="vllm"), "vllm"),
        (EngineConfig(name="vllm-server", servers=("http://a:1",)), "aiohttp"),
    ):
        config = RLConfig(model="no/such/model", data=("none.jsonl",), engine=engine, output=str(tmp_path))
        with pytest.raises(UserError, match=f"engine {engine.name} needs the package {package}"):
            train(config)
    assert not list(tmp_path.iterdir())


def test_rl_truncates_importance_weights_for_vllm_unless_told_otherwise_and_refuses_what_cannot_be():
    def config(engine="native", cap=None, **rollout):
        algorithm = dataclasses.replace(algorithm_preset("da_grpo"), importance_cap=cap)
        settings = RLConfig(
            rollout=RolloutConfig(**rollout), engine=EngineConfig(name=engine), algorithm=algorithm
        )
        return settings.running_algorithm()

    assert config().importance_cap is None
    assert config(engine="vllm").importance_cap == config(engine="vllm-server").importance_cap == 2.0
    assert config(cap=5.0, engine="vllm").importance_cap == 5.0
    assert config(cap=0.0, engine="vllm").importance_cap == 0.0  # never
    with pytest.raises(
        UserError, match=r"engine\.servers is given but the engine is vllm; use --engine vllm-server"
    ):
        EngineConfig(name="vllm", servers=("http://a:1",))
    with pytest.raises(UserError, match="log-probabilities of what top-p and top-k left over"):
        config(engine="vllm-server", top_p=0.9)


def test_engine_and_servers_are_two_options():
    arguments = ["--engine", "vllm-server", "--engine.servers", "http://a:1", "http://b:2"]
    for kind in (RLConfig, DistillConfig):
        config = parse_options(kind, arguments, description="", default_config=lambda _: None)
        assert config.engine.name == "vllm-server"
        assert config.engine.servers == ("http://a:1", "http://b:2")


def test_the_example_of_the_page_runs(folder, model, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "vllm.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    server = own(tmp_path)
    server.start()
    monkeypatch.setenv("VLLM_API_KEY", server.key)
    (tmp_path / "vllm").mkdir()
    write_canary(model, tmp_path / "vllm")
    names = {"folder": folder, "url": server.url, "model": model, "output": tmp_path}
    try:
        assert blocks
        for block in blocks:
            exec(compile(block, "docs/vllm.md", "exec"), names)
    finally:
        server.stop()


def _has_vllm():
    from importlib.util import find_spec

    return find_spec("vllm") is not None
