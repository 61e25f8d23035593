"""`dcore serve` at its door: real sockets, the real openai client, a scripted engine or a small random model behind it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dcore_jax import UserError
from dcore_jax.data.chat_template import ChatTemplate
from dcore_jax.data.notation import template_notation
from dcore_jax.engines import EngineConfig, NativeEngine, Request, SamplingParams
from dcore_jax.models import model_config_from_hf
from dcore_jax.nano.config import nano_fields
from dcore_jax.player import BatchEngine, PlayableModel
from dcore_jax.serve.config import ServeConfig
from dcore_jax.serve.run import listen
from dcore_jax.weights import new_decoder
from qwen_tokenizer import byte_tokenizer
from test_player import CHATML, TEMPLATES, TOOL, add, call_text

pytest.importorskip("aiohttp", reason="the extra `serve`")
KEY = "a-key-of-the-tests"


class Served:
    """A server in a thread of its own, and plain HTTP to it."""

    def __init__(self, model, **options):
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        config = ServeConfig(**{"port": 0, "api_key": KEY, "name": "m", **options})
        self.thread = threading.Thread(target=self._run, args=(model, config), daemon=True)
        self.thread.start()
        assert self.ready.wait(30)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _run(self, model, config):
        def ready(host, port, key):
            self.port, self.key = port, key
            self.ready.set()

        self.task = self.loop.create_task(listen(model, config, ready=ready))
        with contextlib.suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)

    def close(self):
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(20)
        assert not self.thread.is_alive()

    def ask(self, path, body=None, key=KEY):
        """(status, JSON)."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{self.url}/{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def events(self, path, body):
        """The data of server-sent events."""
        request = urllib.request.Request(
            f"{self.url}/{path}",
            json.dumps({**body, "stream": True}).encode(),
            {"Authorization": f"Bearer {KEY}"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            lines = [line.decode().removeprefix("data: ").strip() for line in response if line.strip()]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def playable(tokenizer, engine, max_length=600, vocab_size=320):
    template = ChatTemplate(tokenizer)
    ends = frozenset({tokenizer.eos_token_id})
    return PlayableModel(
        "m", Path("."), engine, template, ends, template_notation(template), vocab_size, max_length
    )


class Parrot(BatchEngine):
    """Says `text`, a few ids at a poll; keeps the prompts it was given."""

    def __init__(self, tokenizer, text, pace=7):
        super().__init__(lambda requests: [])
        self.tokenizer, self.text, self.pace, self.prompts = tokenizer, text, pace, []
        self._so_far = {}

    def submit(self, requests):
        super().submit(requests)
        for request in requests:
            self.prompts.append(self.tokenizer.decode(request.prompt_ids))
            self._so_far[request.id] = 0

    def poll(self):
        from dcore_jax.engines import Sample

        time.sleep(0.002)
        done = []
        for request in list(self._waiting):
            ids = (
                *self.tokenizer(self.text, add_special_tokens=False)["input_ids"],
                self.tokenizer.eos_token_id,
            )
            ids = ids[: request.sampling.max_tokens]
            self._so_far[request.id] += self.pace
            if self._so_far[request.id] >= len(ids):
                self._waiting.remove(request)
                reason = "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
                done.append(Sample(request.id, request.prompt_ids, ids, (-0.5,) * len(ids), reason, 0))
        return done

    def sampled_so_far(self):
        ids = tuple(self.tokenizer(self.text, add_special_tokens=False)["input_ids"])
        return {r.id: ids[: self._so_far[r.id]] for r in self._waiting}

    def logprobs_so_far(self):
        return {i: (-0.5,) * len(ids) for i, ids in self.sampled_so_far().items()}

    def cancel(self, ids):
        self._waiting = [request for request in self._waiting if request.id not in ids]


@pytest.fixture
def parrot():
    """Starts servers that say a text, with the byte tokenizer and one of the player's templates."""
    started = []

    def start(text, template="qwen3", pace=7, **options):
        tokenizer = byte_tokenizer(TEMPLATES[template])
        engine = Parrot(tokenizer, text, pace)
        started.append(Served(playable(tokenizer, engine), **options))
        started[-1].engine = engine
        return started[-1]

    yield start
    for served in started:
        served.close()


def client_of(served, key=KEY):
    openai = pytest.importorskip("openai", reason="the openai client, in the extra `test`")
    return openai.OpenAI(base_url=served.url, api_key=key, max_retries=0, timeout=60)


SAID = "<think>\nI add.\n</think>\n\nOn it – é.\n" + call_text(add(2), add(40))
MESSAGES = [{"role": "user", "content": "add"}]


def test_the_openai_client_completes_a_tool_call_whole_and_streamed(parrot):
    served = parrot(SAID)
    client = client_of(served)
    assert [model.id for model in client.models.list()] == ["m"]
    response = client.chat.completions.create(model="m", messages=MESSAGES, tools=[TOOL], temperature=0)
    (choice,) = response.choices
    calls = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls]
    assert calls == [("add", {"x": 2}), ("add", {"x": 40})]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "On it – é.")
    assert choice.message.reasoning_content == "I add."
    assert len({c.id for c in choice.message.tool_calls}) == 2
    tokens = len(served.engine.tokenizer(SAID)["input_ids"]) + 1
    assert response.usage.completion_tokens == tokens
    prompt = served.engine.tokenizer(served.engine.prompts[0], add_special_tokens=False)["input_ids"]
    assert response.usage.prompt_tokens == len(prompt)

    thought = content = ""
    streamed, reasons = {}, []
    with client.chat.completions.create(
        model="m", messages=MESSAGES, tools=[TOOL], stream=True, stream_options={"include_usage": True}
    ) as chunks:
        for chunk in chunks:
            if not chunk.choices:
                assert chunk.usage.completion_tokens == tokens
                continue
            delta = chunk.choices[0].delta
            thought += getattr(delta, "reasoning_content", None) or ""
            content += delta.content or ""
            for call in delta.tool_calls or ():
                streamed[call.index] = (call.function.name, json.loads(call.function.arguments))
            reasons.append(chunk.choices[0].finish_reason)
    assert (thought, content) == ("I add.", "On it – é.")
    assert [streamed[i] for i in sorted(streamed)] == calls
    assert reasons[-1] == "tool_calls" and not any(reasons[:-1]) and len(reasons) > 5


def test_what_the_client_sends_back_reaches_the_template(parrot):
    """Calls with arguments as JSON text, and a tool's answer by its id."""
    served = parrot("42.", "qwen3")
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 2}'}}
    history = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    response = client_of(served).chat.completions.create(model="m", messages=history, tools=[TOOL])
    assert response.choices[0].message.content == "42." and response.choices[0].finish_reason == "stop"
    (prompt,) = served.engine.prompts
    assert "Be brief." in prompt and '{"name": "add", "arguments": {"x": 2}}' in prompt
    assert "<tool_response>\n2\n</tool_response>" in prompt and prompt.endswith("<|im_start|>assistant\n")
    # A template of a model that writes calls as Python lists in its content is given them so.
    nano = parrot("42.", "nano")
    client_of(nano).chat.completions.create(model="m", messages=history, tools=[TOOL])
    assert "<|im_start|>assistant\n[add(x=2)]<|im_end|>" in nano.engine.prompts[0]


def test_tool_choice(parrot):
    other = {
        "type": "function",
        "function": {"name": "sub", "parameters": {"type": "object", "properties": {}}},
    }

    def ask(text, choice, template="qwen3", tools=(TOOL, other)):
        served = parrot(text, template)
        status, answer = served.ask(
            "chat/completions", {"messages": MESSAGES, "tools": list(tools), "tool_choice": choice}
        )
        assert status == 200
        return served.engine.prompts[0], answer["choices"][0]

    named = {"type": "function", "function": {"name": "add"}}
    prompt, choice = ask(' {"x": 3}}\n</tool_call>', named)
    assert prompt.endswith('<tool_call>\n{"name": "add", "arguments":')
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"x": 3}'}
    prompt, choice = ask("x=3)]", named, "nano")
    assert prompt.endswith("assistant\n[add(") and choice["finish_reason"] == "tool_calls"
    prompt, choice = ask('sub", "arguments": {}}\n</tool_call>', "required")
    assert (
        prompt.endswith('<tool_call>\n{"name": "')
        and choice["message"]["tool_calls"][0]["function"]["name"] == "sub"
    )
    prompt, choice = ask("no idea", named)  # a model that does not go on with the call: told as it is
    assert "tool_calls" not in choice["message"] and choice["message"]["content"].endswith("no idea")
    prompt, choice = ask(call_text(add(1)), "none")
    assert '"add"' not in prompt and "tool_calls" not in choice["message"]


def test_calls_that_cannot_be_read_stay_in_the_content(parrot):
    broken = 'see <tool_call>\n{"name": "add", \n</tool_call>'
    served = parrot(broken)
    body = {"messages": MESSAGES, "tools": [TOOL]}
    (choice,) = served.ask("chat/completions", body)[1]["choices"]
    assert choice["message"] == {"role": "assistant", "content": broken} and choice["finish_reason"] == "stop"
    deltas = [e["choices"][0]["delta"].get("content", "") for e in served.events("chat/completions", body)]
    assert "".join(deltas) == broken


def test_completions_stop_texts_logprobs_several_prompts_and_usage(parrot):
    text = "one é two STOP three"
    served = parrot(text, pace=1)
    status, answer = served.ask(
        "completions", {"prompt": ["ab", [1, 2, 3]], "max_tokens": 99, "n": 2, "logprobs": 1}
    )
    assert status == 200 and [c["text"] for c in answer["choices"]] == [text] * 4
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    size = len(text.encode())
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4 * (size + 1),
        "total_tokens": 4 * size + 9,
    }
    logprobs = answer["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == size and set(logprobs["token_logprobs"]) == {-0.5}
    for stop in ("STOP", ["nothing", " STOP", "TOP"]):
        wanted = text[: text.index("STOP")].rstrip() if isinstance(stop, list) else text[: text.index("STOP")]
        body = {"prompt": "ab", "max_tokens": 99, "stop": stop}
        (choice,) = served.ask("completions", body)[1]["choices"]
        assert (choice["text"], choice["finish_reason"]) == (wanted, "stop")
        events = served.events("completions", {**body, "stream_options": {"include_usage": True}})
        assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == wanted
        assert events[-1]["usage"]["completion_tokens"] < size
    (choice,) = served.ask("completions", {"prompt": "ab", "max_tokens": 3})[1]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("one", "length")
    assert served.ask("completions", {"prompt": "ab"})[1]["usage"]["completion_tokens"] == 16


BAD = [
    (b"{not json", 400, "no JSON"),
    (b"\xff\xfe", 400, "no JSON"),
    (b"[" * 100_000, 400, "no JSON"),
    ([], 400, "must be a JSON object"),
    ({}, 400, "prompt must be a text"),
    ({"prompt": {}}, 400, "prompt must be"),
    ({"prompt": ""}, 400, "the prompt is empty"),
    ({"prompt": [5, 320]}, 400, "outside the vocabulary of 320"),
    ({"prompt": [-1]}, 400, "outside the vocabulary"),
    ({"prompt": "x" * 600}, 400, "tokens or more; with a completion at most 600 fit"),
    ({"prompt": "x" * 20_000_000}, 400, "at most 600 fit"),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens must be"),
    ({"prompt": "a", "max_tokens": "many"}, 400, "max_tokens must be"),
    ({"prompt": "a", "temperature": "hot"}, 400, "temperature must be a number"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature must be"),
    ({"prompt": "a", "top_p": 0}, 400, "top_p must be above 0"),
    ({"prompt": "a", "n": 10_000}, 400, "n must be a whole number from 1 to 128"),
    ({"prompt": "a", "stop": 5}, 400, "stop must be"),
    ({"prompt": "a", "stop_token_ids": [900]}, 400, "stop_token_ids holds ids outside"),
    ({"prompt": "a", "stream": "yes"}, 400, "stream must be"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias is not supported"),
    ({"prompt": "a", "echo": True}, 400, "echo is not supported"),
]
BAD_CHATS = [
    ({"messages": "hello"}, "messages must be a list"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "oracle", "content": "x"}]}, "unknown role"),
    ({"messages": [7]}, "a message must be an object"),
    ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "a tool without a name"),
    (
        {"messages": MESSAGES, "tools": [TOOL], "tool_choice": {"function": {"name": "nope"}}},
        "not among the tools",
    ),
    ({"messages": MESSAGES, "tool_choice": "required"}, "there are no tools"),
    ({"messages": [{"role": "user", "content": "y" * 5000}]}, "at most 600 fit"),
    ({"messages": MESSAGES, "top_logprobs": 5, "logprobs": True}, "top_logprobs is not supported"),
    ({"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format is not supported"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
]


def test_bad_requests_are_told_what_is_wrong_and_leave_it_serving(parrot):
    served = parrot("fine")
    for body, status, message in BAD:
        found, answer = served.ask("completions", body)
        assert (found, message in answer["error"]["message"]) == (status, True), (str(body)[:80], answer)
    for body, message in BAD_CHATS:
        found, answer = served.ask("chat/completions", body)
        assert (found, message in answer["error"]["message"]) == (400, True), (str(body)[:80], answer)
    for key in (None, "wrong", KEY + "x", "ключ".encode().decode("latin-1")):
        assert served.ask("completions", {"prompt": "a"}, key=key)[0] == 401
        assert served.ask("chat/completions", {"messages": MESSAGES}, key=key)[0] == 401
    assert served.ask("models", key="wrong")[0] == 401 and served.ask("models", key=None)[0] == 200
    assert served.ask("nowhere")[0] == 404 and served.ask("completions")[0] == 405
    assert served.ask("models/other")[0] == 404 and served.ask("models/m")[1]["id"] == "m"
    assert (
        served.ask("completions", {"prompt": "a", "an_unknown_field": 1})[1]["choices"][0]["text"] == "fine"
    )
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.AuthenticationError):
        client_of(served, "wrong").completions.create(model="m", prompt="a")
    with pytest.raises(openai.BadRequestError, match="at most 600 fit"):
        client_of(served).completions.create(model="m", prompt="a" * 700)
    assert len(served.engine.prompts) == 1


def test_an_engine_that_fails_is_told_and_the_server_stays(parrot):
    served = parrot("fine")
    served.engine.poll = lambda: (_ for _ in ()).throw(
        UserError("weights of version 0 give logits that are not finite")
    )
    for _ in range(2):
        status, answer = served.ask("completions", {"prompt": "a"})
        assert status == 500 and "logits that are not finite" in answer["error"]["message"]
    assert served.ask("models")[0] == 200


def test_too_many_requests_are_told_to_come_later(parrot):
    served = parrot("slow " * 100, pace=1, waiting=1, engine=EngineConfig(slots=1))
    with ThreadPoolExecutor(6) as threads:
        found = list(
            threads.map(lambda _: served.ask("completions", {"prompt": "a", "max_tokens": 200})[0], range(6))
        )
    assert set(found) == {200, 429} and found.count(200) >= 2


@pytest.fixture(scope="module")
def native():
    """A small random model behind a real native engine of 16 slots."""
    decoder = new_decoder(model_config_from_hf(nano_fields(320, hidden=64, layers=2)), seed=1)
    tokenizer = byte_tokenizer(CHATML)
    engine = NativeEngine(
        decoder, slots=16, max_length=256, eos_token_ids=[tokenizer.eos_token_id], steps_per_dispatch=8
    )
    served = Served(playable(tokenizer, engine, max_length=256))
    served.engine = engine
    yield served
    served.close()


def test_64_concurrent_requests_get_what_each_would_get_alone(native):
    def body(i):
        return {
            "prompt": [i + 1, 7, i + 2],
            "max_tokens": 12,
            "seed": i,
            "temperature": 1.0,
            "ignore_eos": True,
        }

    def ask(i):
        if i % 2:
            return "".join(e["choices"][0]["text"] for e in native.events("completions", body(i)))
        return native.ask("completions", body(i))[1]["choices"][0]["text"]

    with ThreadPoolExecutor(64) as threads:
        together = list(threads.map(ask, range(64)))
    for i in (0, 1, 30, 63):
        assert together[i] == native.ask("completions", body(i))[1]["choices"][0]["text"]
    assert len(set(together)) > 60


def test_the_server_gives_the_engines_own_ids_and_logprobs(native):
    body = {
        "prompt": [9, 8, 7],
        "max_tokens": 20,
        "seed": 4,
        "temperature": 0.7,
        "ignore_eos": True,
        "logprobs": 0,
    }
    (choice,) = native.ask("completions", body)[1]["choices"]
    decoder = new_decoder(model_config_from_hf(nano_fields(320, hidden=64, layers=2)), seed=1)
    sampling = SamplingParams(max_tokens=20, temperature=0.7, seed=4, ignore_eos=True)
    (sample,) = NativeEngine(decoder, slots=16, max_length=256, steps_per_dispatch=8).generate(
        [Request((9, 8, 7), sampling)]
    )
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(list(sample.logprobs), abs=1e-6)
    assert choice["text"] == byte_tokenizer(CHATML).decode(sample.ids, skip_special_tokens=True)


def test_a_client_that_goes_away_frees_its_slots(native):
    slow = {"prompt": [1, 2], "max_tokens": 250, "ignore_eos": True}
    for stream in (True, False):
        data = json.dumps({**slow, "stream": stream, "n": 40}).encode()
        with socket.create_connection(("127.0.0.1", native.port)) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            head += f"Content-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
            time.sleep(0.3)
        with socket.create_connection(("127.0.0.1", native.port)) as connection:
            connection.sendall(head.encode() + data[:10])  # half a body
    deadline = time.monotonic() + 20
    while native.engine.in_flight and time.monotonic() < deadline:
        time.sleep(0.05)
    assert native.engine.in_flight == 0
    assert native.engine.stats.generated_tokens < 80 * 250
    assert native.ask("completions", {"prompt": [5], "max_tokens": 2})[0] == 200


def test_nothing_listens_beyond_loopback_unless_told_to(parrot):
    served = parrot("fine")
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1"}:
        if not address.startswith("127."):
            with pytest.raises(OSError), socket.create_connection((address, served.port), timeout=2):
                pass
    drawn = parrot("fine", api_key="")
    assert len(drawn.key) >= 32 and drawn.ask("completions", {"prompt": "a"}, key=drawn.key)[0] == 200
    assert drawn.ask("completions", {"prompt": "a"}, key=KEY)[0] == 401
    assert parrot("fine", api_key="none").ask("completions", {"prompt": "a"}, key=None)[0] == 200
    with pytest.raises(UserError, match="--api-key none is for loopback only"):
        ServeConfig(api_key="none", host="0.0.0.0")


@pytest.mark.slow
def test_the_command_prints_its_address_and_key_and_ends_at_ctrl_c(tmp_path):
    words = [sys.executable, "-c", "from dcore_jax.cli import main; main()", "serve"]
    command = [*words, "--model", "nano-base", "--port", "0", "--engine.slots", "4"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        url = process.stdout.readline().split()[-1]
        key = process.stdout.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:") and len(key) >= 32
        request = urllib.request.Request(
            f"{url}/completions",
            json.dumps({"prompt": "count", "max_tokens": 3}).encode(),
            {"Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 3
        taken = subprocess.run([*command, "--port", url.split(":")[2].removesuffix("/v1")][:5] + [
            "--model", "nano-base", "--port", url.split(":")[2].removesuffix("/v1")], capture_output=True, text=True, timeout=300,
            check=False)  # fmt: skip
        assert taken.returncode == 1 and "give another --port" in taken.stderr
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "ended: 1 completions, 3 tokens" in out and "Traceback" not in err
