"""The real vLLM (its CPU build where there is no GPU) against transformers, the native engine and the trainer: `make test-vllm`.

One server for all tests over HTTP, one engine in process for the rest; no server is started twice but where a test kills it.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcore_jax import UserError, load_hf
from dcore_jax.engines import NativeEngine, Request, SamplingParams, fan_out

pytestmark = pytest.mark.vllm
if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; run `make test-vllm`", allow_module_level=True)

LENGTH = 128
RNG = np.random.default_rng(1)
PROMPTS = [tuple(RNG.integers(0, 300, n).tolist()) for n in (1, 2, 5, 17, 33, 64, 90)]
GREEDY = SamplingParams(max_tokens=16, temperature=0)


def new_folder(path, tied, spread=0.15):
    """A small random Qwen3 with a tokenizer, made by transformers; at this spread its distributions are far from uniform."""
    import torch
    import transformers

    from dcore_jax.nano import build_tokenizer

    tokenizer = build_tokenizer(path)
    config = transformers.Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=spread,
        tie_word_embeddings=tied, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.Qwen3ForCausalLM(config).eval().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return new_folder(tmp_path_factory.mktemp("models") / "tied", True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return new_folder(tmp_path_factory.mktemp("models") / "untied", False)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Logits of the size that training starts with: at `spread` 0.15 any two bfloat16 programs are 0.015 to 0.03 nats apart."""
    return new_folder(tmp_path_factory.mktemp("models") / "calm", False, spread=0.05)


@pytest.fixture(scope="module")
def model(tied):
    return load_hf(tied)


@pytest.fixture(scope="module")
def own_server(tied, tmp_path_factory):
    from dcore_jax.engines.vllm.server import OwnServer, ServerPlan

    server = OwnServer(ServerPlan(tied, tmp_path_factory.mktemp("logs"), LENGTH, dtype="float32", slots=32))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def over_http(own_server, model, tmp_path_factory):
    from dcore_jax.engines.vllm.engine import ServerEngine
    from dcore_jax.engines.vllm.pool import Limits

    engine = ServerEngine(
        [own_server],
        model.config,
        max_length=LENGTH,
        folder=tmp_path_factory.mktemp("weights"),
        limits=Limits(probe_interval=1.0, probe_timeout=2.0),
    )
    yield engine
    engine.close()


def changed(model, scale=1.15):
    """The model with other weights, in every tensor."""
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x * scale + 0.003, params))


def requests(sampling, prompts=PROMPTS):
    return [Request(prompt, replace(sampling, seed=i), i) for i, prompt in enumerate(prompts)]


@nnx.jit
def forward(model, tokens):
    return model(tokens)


def trainer_logprobs(model, sample, temperature=1.0):
    """log p of the sampled ids by the trainer's own forward pass, whole sequence at once."""
    tokens = np.array([sample.prompt_ids + sample.ids], np.int32)
    padded = np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))
    logits = forward(model, padded)[0].astype(jnp.float32) / temperature
    logits = np.asarray(jax.nn.log_softmax(logits))[len(sample.prompt_ids) - 1 : tokens.shape[1] - 1]
    return logits[np.arange(len(sample.ids)), list(sample.ids)]


def gaps(model, samples, temperature=1.0):
    found = [np.abs(trainer_logprobs(model, s, temperature) - np.array(s.logprobs)) for s in samples if s.ids]
    return np.concatenate(found)


def greedy_of_transformers(folder, prompts, count):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    continuations = []
    with torch.no_grad():
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(count):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            continuations.append(tuple(ids[len(prompt) :]))
    return continuations


# --- over HTTP ---


def test_greedy_tokens_equal_transformers_and_the_native_engine(over_http, model, tied):
    asked = requests(GREEDY)
    samples = over_http.generate(asked)
    assert [s.ids for s in samples] == greedy_of_transformers(tied, PROMPTS, 16)
    native = NativeEngine(model, slots=4, max_length=LENGTH)
    for ours, theirs in zip(native.generate(asked), samples):
        assert ours.ids == theirs.ids and ours.finish_reason == theirs.finish_reason == "length"
        assert np.abs(np.array(ours.logprobs) - np.array(theirs.logprobs)).max() < 1e-3


@pytest.mark.parametrize("sync", ["transfer", "disk"])
def test_after_an_update_without_restart_sampled_logprobs_are_the_trainers(sync, over_http, model, capsys):
    over_http._sync._method = sync
    for version, weights in ((1, changed(model)), (2, model)):
        over_http.update_weights(weights, version)
        for temperature in (1.0, 0.6):
            samples = over_http.generate(requests(SamplingParams(max_tokens=30, temperature=temperature)))
            assert {s.weight_version for s in samples} == {version}
            found = gaps(weights, samples, temperature)
            assert found.size > 150 and found.max() < 1e-3
    with capsys.disabled():
        print(
            f"\n[{sync}] float32: largest gap to the trainer {found.max():.1e}, canary {over_http.canary_gaps}"
        )


def test_conversations_of_the_player_append_ids_and_have_the_trainers_logprobs(
    over_http, model, tied, monkeypatch
):
    """64 conversations of two turns at once, in 32 slots; every id of every prompt is what was sent or sampled before."""
    from dcore_jax.data.tokenizer import load_tokenizer
    from dcore_jax.player import Limits as Length
    from dcore_jax.player import Opening, Session, new_bridge, play

    class Talker(Session):
        instant = True

        def __init__(self, number):
            self.id, self.said = f"c{number}", False

        def open(self):
            return Opening([{"role": "user", "content": f"read file a{self.id}"}])

        def reply(self, turn):
            self.said, before = True, self.said
            return None if before else [{"role": "user", "content": "and again"}]

    prompts, busy = {}, []
    submit, poll = over_http.submit, over_http.poll

    def noting(asked):
        prompts.update({str(one.id): one.prompt_ids for one in asked})
        submit(asked)

    def counting():
        busy.append(min(over_http.in_flight, 32))
        return poll()

    monkeypatch.setattr(over_http, "submit", noting)
    monkeypatch.setattr(over_http, "poll", counting)
    tokenizer = load_tokenizer(tied)
    ends = frozenset({tokenizer.eos_token_id})
    done = []  # how many polls there were when a conversation ended
    played = play(
        [Talker(i) for i in range(128)],
        over_http,
        new_bridge(tokenizer, end_ids=ends),
        Length(max_length=LENGTH, max_tokens=16, max_turns=2, at_once=64),
        sampling=SamplingParams(temperature=1.0, seed=4),
        on_played=lambda _: done.append(len(busy)),
    )
    full = busy[: done[128 - 64]]  # as long as there were 64 to play
    assert len(full) > 10 and sum(full) >= 0.9 * 32 * len(full)
    largest = 0.0
    for number, one in enumerate(played):
        first, second = one.turns
        assert one.error is None and len(one.sequences) == 1
        before = (*prompts[f"{number}/0"], *first.ids)
        assert prompts[f"{number}/1"][: len(before)] == before
        assert tuple(one.ids) == (*prompts[f"{number}/1"], *second.ids)
        logits = forward(model, np.pad(one.ids, (0, LENGTH - len(one.ids)))[None])[0].astype(jnp.float32)
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        at = np.flatnonzero(one.sampled)
        assert len(at) == len(first.ids) + len(second.ids)
        largest = max(largest, np.abs(one.logprobs[at] - logprobs[at - 1, one.ids[at]]).max())
    assert largest < 1e-4


def test_seeds_repeat_stop_tokens_are_kept_and_prompts_without_room_are_overlong(over_http):
    group = fan_out(Request(PROMPTS[3], SamplingParams(max_tokens=40, seed=11), "g"), 8)
    first, again = over_http.generate(group), over_http.generate(group)
    assert [s.ids for s in first] == [s.ids for s in again]
    assert len({s.ids for s in first}) == 8
    stop = first[0].ids[5]
    ended = over_http.generate(
        [replace(group[0], sampling=replace(group[0].sampling, stop_token_ids=(stop,)))]
    )[0]
    assert ended.finish_reason == "stop" and ended.ids == first[0].ids[: first[0].ids.index(stop) + 1]
    long, nearly = over_http.generate(
        [Request((5,) * LENGTH, GREEDY, "long"), Request((5,) * (LENGTH - 3), GREEDY, "nearly")]
    )
    assert (long.finish_reason, nearly.finish_reason, len(nearly.ids)) == ("overlong", "length", 3)


def test_two_swapped_layers_in_the_map_are_caught_by_the_canary(over_http, model, monkeypatch):
    from dcore_jax.weights import export

    right = export._tensors_in

    def swapped(decoder, dtype_for):
        tensors = dict(right(decoder, dtype_for))
        for name in list(tensors):
            if ".layers.0." in name:
                other = name.replace(".layers.0.", ".layers.1.")
                tensors[name], tensors[other] = tensors[other], tensors[name]
        yield from tensors.items()

    with monkeypatch.context() as patch:
        patch.setattr(export, "_tensors_in", swapped)
        with pytest.raises(
            UserError, match=r"after weight update 7 the canary's log-probabilities are .* nats off"
        ):
            over_http.update_weights(model, 7)
    over_http.update_weights(model, 8)  # the right map repairs it
    assert gaps(model, over_http.generate(requests(GREEDY))).max() < 1e-3


def test_five_rl_steps_push_five_versions_and_each_canary_agrees(
    own_server, over_http, tied, tmp_path, monkeypatch
):
    from dcore_jax.engines import EngineConfig
    from dcore_jax.engines.vllm import sync
    from dcore_jax.metrics import read_metrics
    from dcore_jax.rl import RLConfig, RolloutConfig, train
    from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig

    checked = []

    def noted(logprobs, reference, previous, **settings):
        gap = sync_check(logprobs, reference, previous, **settings)
        moved = 0.0 if previous is None else float(np.abs(previous.prompt - reference.prompt).mean())
        checked.append((settings["version"], gap, moved))
        return gap

    sync_check = sync.check_canary
    monkeypatch.setattr(sync, "check_canary", noted)
    monkeypatch.setenv("VLLM_API_KEY", own_server.key)
    config = RLConfig(
        model=str(tied),
        data=(write_prompts(tmp_path),),
        output=str(tmp_path / "run"),
        mesh="1",
        steps=5,
        prompts=2,
        updates=1,
        rollout=RolloutConfig(group=4, max_prompt=LENGTH - 8, max_response=8),
        engine=EngineConfig(name="vllm-server", servers=(own_server.url,)),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup=0.0, weight_decay=0.0),
        compute=ComputeConfig(dtype="float32", remat="none"),
        checkpoint=CheckpointConfig(every=5),
    )
    result = train(config)
    assert result.step == 5
    assert [version for version, _, _ in checked] == [0, 1, 2, 3, 4, 5]
    assert max(gap for _, gap, _ in checked) < 1e-3
    assert all(moved > 1e-3 for version, _, moved in checked if version)  # weights did change, each time
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["weight_version"] for row in rows] == [0, 1, 2, 3, 4]
    assert (
        max(row["engine_gap_max"] for row in rows) < 1e-3
        and min(row["engine_gap_ess"] for row in rows) > 0.999
    )
    assert config.running_algorithm().importance_cap == 2.0


def write_prompts(folder):
    """Prompts that are short in tokens, whose reward varies with what a random model says."""
    path = folder / "prompts.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"k{i}"}], "tools": [], "reference": []} for i in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_killed_or_hangs_in_mid_batch_is_restarted_with_the_current_weights(
    number, own_server, over_http, model
):
    weights = changed(model, 1.1)
    over_http.update_weights(weights, 21)
    starts = own_server.starts
    asked = requests(SamplingParams(max_tokens=60), [PROMPTS[i % 6] for i in range(80)])
    over_http.submit(asked)
    done = []
    while len(done) < 5:
        done += over_http.poll()
    os.killpg(own_server.process_group, number)
    while over_http.in_flight:
        done += over_http.poll()
    assert own_server.starts == starts + 1
    assert Counter(s.request_id for s in done) == Counter(range(80))
    assert {s.weight_version for s in done} == {21}
    assert (
        gaps(weights, done).max() < 1e-3
    )  # by the weights of version 21, those before the fault and those after


# --- in process ---

SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
from dcore_jax import load_hf
from dcore_jax.engines import EngineConfig, open_engine, Request, SamplingParams
from test_vllm import GREEDY, LENGTH, changed, gaps, greedy_of_transformers, requests, PROMPTS
folder, dtype = {folder!r}, {dtype!r}
model = load_hf(folder, dtype=dtype, param_dtype="float32")
engine = open_engine(EngineConfig(name="vllm", slots=16), folder, max_length=LENGTH, decoder=model)
if dtype == "float32":
    assert [s.ids for s in engine.generate(requests(GREEDY))] == greedy_of_transformers(folder, PROMPTS, 16)
asked = requests(SamplingParams(max_tokens=30))
first = gaps(model, engine.generate(asked))
weights = changed(model)
engine.update_weights(weights, 4)
samples = engine.generate(asked)
before = gaps(weights, samples)
assert before.size > 150 and {{s.weight_version for s in samples}} == {{4}}
engine.sleep()
engine.wake()
again = engine.generate(asked)
assert [s.ids for s in again] == [s.ids for s in samples], "sleep and wake changed the weights"
engine.submit(requests(SamplingParams(max_tokens=8)))
try:
    engine.update_weights(weights, 5)
except RuntimeError as error:
    assert "in flight" in str(error)
else:
    raise AssertionError("updated with requests in flight")
polled = []
while engine.in_flight:
    polled += engine.poll()
assert len(polled) == len(PROMPTS)
engine.close()
print("GAPS", first.mean(), first.max(), before.mean(), before.max(), engine.canary_gap)
"""


@pytest.mark.parametrize(
    ("kind", "dtype", "mean", "largest"),
    [("tied", "float32", 1e-4, 1e-3), ("untied", "float32", 1e-4, 1e-3), ("calm", "bfloat16", 5e-3, 2e-2)],
)
def test_in_process_logprobs_are_the_trainers_and_survive_sleep_and_wake(
    kind, dtype, mean, largest, request, capsys
):
    folder = str(request.getfixturevalue(kind))
    code = SCRIPT.format(tests=str(Path(__file__).parent), folder=folder, dtype=dtype)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    line = next(line for line in run.stdout.splitlines() if line.startswith("GAPS"))
    found = [float(x) for x in line.split()[1:]]
    with capsys.disabled():
        print(
            f"\n[in process, {kind}, {dtype}] gap to the trainer, mean and largest, before and after an update: {found}"
        )
    assert found[0] < mean and found[1] < largest
    assert (
        found[2] < 3 * mean and found[3] < 3 * largest
    )  # the changed weights are sharper, so their rounding is coarser


_ANSWER_IN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt

folder, prompts = sys.argv[1], json.loads(sys.argv[2])
llm = LLM(folder, distributed_executor_backend="uni", dtype="float32", enforce_eager=True, max_model_len=512)
given = SamplingParams(max_tokens=24, temperature=0.0)  # its end tokens come from the export's generation_config.json
outputs = llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], given, use_tqdm=False)
print("ANSWER", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.mark.network
def test_real_weights_that_we_exported_answer_in_vllm_as_in_our_engine(tmp_path):
    """SmolLM2-135M-Instruct through our loader and export; greedy answers, and where they end, are the same."""
    from dcore_jax import export_hf
    from dcore_jax.data.chat_template import render_chat
    from dcore_jax.data.tokenizer import load_tokenizer
    from dcore_jax.weights import stop_token_ids
    from oracles import smollm2_folder

    folder = smollm2_folder()
    model, tokenizer = load_hf(folder), load_tokenizer(folder)
    out, ends = export_hf(model, tmp_path / "hf", source=folder), sorted(stop_token_ids(folder, tokenizer))
    asked = ["What is the capital of Norway?", "Count from 1 to 5.", "Say hello in French."]
    chats = [
        render_chat(tokenizer, [{"role": "user", "content": q}], add_generation_prompt=True) for q in asked
    ]
    prompts = [tokenizer(chat, add_special_tokens=False)["input_ids"] for chat in chats]
    greedy = SamplingParams(max_tokens=24, temperature=0.0)
    ours = NativeEngine(model, slots=4, eos_token_ids=ends).generate(
        [Request(tuple(p), greedy) for p in prompts]
    )
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_CI_ENV": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _ANSWER_IN_VLLM, str(out), json.dumps(prompts)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ANSWER"))[7:])
    assert theirs == [list(sample.ids) for sample in ours]
    assert any(len(answer) < 24 for answer in theirs)  # some end by themselves
