"""BFCL generated through the player: turns, steps, tools, resumption, and prompts as bfcl-eval's own handlers write them."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dcore_jax.data.chat_template import as_chat_template
from dcore_jax.engines import Request, SamplingParams
from dcore_jax.engines.text_server import TextServerEngine
from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl.client import Client
from dcore_jax.evaluation.bfcl.generate import Generation, generate
from dcore_jax.evaluation.bfcl.install import install
from dcore_jax.evaluation.bfcl.rendering import (
    HandlerHistory,
    assistant_message,
    render_qwen3,
    split_response,
)
from dcore_jax.evaluation.bfcl.score import score_results
from dcore_jax.evaluation.bfcl.sessions import questions_of
from dcore_jax.player import PlayableModel, scripted_engine
from qwen_tokenizer import byte_tokenizer

TOOL = {
    "name": "add",
    "description": "adds",
    "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}},
}


class SmallBenchmark:
    """Two conversations of two turns whose one tool adds to a sum, and two single questions; answers as a `Client` would."""

    def __init__(self):
        self.sums = {}
        self.running = set()

    def ask(self, method, /, **given):
        return getattr(self, method)(**given)

    def step_limit(self):
        return 3

    def ids(self, category):
        return [f"{category}_{i}" for i in range(2)]

    def prompts(self, category, function_calling):
        turns = [[{"role": "user", "content": "add 1"}]]
        if not function_calling:
            turns[0].insert(0, {"role": "system", "content": f"Functions: {TOOL}"})
        if "multi_turn" in category:
            turns.append([{"role": "user", "content": "add 2"}])
        tools = [TOOL] if function_calling else []
        return [{"id": one, "turns": turns, "functions": tools} for one in self.ids(category)]

    def open(self, session, category, index):
        self.running.add(session)
        self.sums[session] = 10 * index

    def calls_of(self, step, style):
        return [step.strip("[]")] if "add(" in step or '"add"' in step else []

    def run_call(self, session, call):
        self.sums[session] += 1 if "1" in call else 2
        return str(self.sums[session])

    def close(self, session):
        self.running.remove(session)


def model(texts, tokenizer=None):
    """A model that says `texts[conversation][turn]`."""
    tokenizer = tokenizer or byte_tokenizer()
    engine = scripted_engine(tokenizer, lambda conversation, turn: texts[conversation][turn])
    return PlayableModel("M", Path(), engine, as_chat_template(tokenizer), frozenset(), None, 300, 10**7)


def rows_of(folder, category):
    text = (folder / f"BFCL_v3_{category}_result.json").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_conversations_are_written_by_turn_and_step(tmp_path):
    benchmark = SmallBenchmark()
    thought = "<think>\nadd it\n</think>\n\n"
    script = [f"{thought}[add(x=1)]", "done", "[add(x=2)]", f"{thought}done"]
    endless = ["[add(x=1)]"] * 9
    notes = generate(
        model([script, endless]), benchmark, ["multi_turn_base"], tmp_path, Generation("v3"), progress=False
    )
    first, second = rows_of(tmp_path, "multi_turn_base")
    assert first["result"] == [["[add(x=1)]", "done"], ["[add(x=2)]", "done"]]
    assert first["reasoning_content"] == [["add it", ""], ["", "add it"]]
    assert [len(steps) for steps in first["output_token_count"]] == [2, 2]
    # Three steps are allowed: the fourth is taken and ends the item, whose turns are then too few.
    assert second["result"] == [["[add(x=1)]"] * 4]
    assert (
        benchmark.sums == {"multi_turn_base_0": 3, "multi_turn_base_1": 14}
        and not benchmark.running
        and not notes
    )


def test_a_cut_run_goes_on_and_asks_only_what_is_missing(tmp_path):
    categories, how = ["live_simple", "parallel"], Generation("v3")
    answers = [[f"answer {i}"] for i in range(4)]
    generate(model(answers), SmallBenchmark(), categories, tmp_path, how, progress=False)
    whole = {name: rows_of(tmp_path, name) for name in categories}
    assert [row["result"] for row in whole["parallel"]] == ["answer 2", "answer 3"]
    path = tmp_path / "BFCL_v3_parallel_result.json"
    path.write_text(path.read_text()[:-30])  # killed while it wrote the last line
    generate(model([["again"]]), SmallBenchmark(), categories, tmp_path, how, progress=False)
    assert rows_of(tmp_path, "live_simple") == whole["live_simple"]
    assert [row["result"] for row in rows_of(tmp_path, "parallel")] == ["answer 2", "again"]
    with pytest.raises(UserError, match="answers made with thinking True"):
        generate(
            model([]),
            SmallBenchmark(),
            categories,
            tmp_path,
            Generation("v3", thinking=False),
            progress=False,
        )
    with pytest.raises(UserError, match="score stored outputs"):
        generate(model([]), SmallBenchmark(), ["web_search_base"], tmp_path / "w", how, progress=False)


def test_a_limit_may_grow_and_shrink_without_losing_answers(tmp_path):
    for limit, texts in ((1, [["a"]]), (0, [["b"]]), (1, [])):
        generate(
            model(texts),
            SmallBenchmark(),
            ["parallel"],
            tmp_path,
            Generation("v3", limit=limit),
            progress=False,
        )
    assert [row["result"] for row in rows_of(tmp_path, "parallel")] == ["a", "b"]


def test_what_does_not_fit_is_an_error_that_is_said(tmp_path):
    short = model([[], []])
    short = PlayableModel(
        *(100 if name == "max_length" else getattr(short, name) for name in short.__dataclass_fields__)
    )
    notes = generate(short, SmallBenchmark(), ["parallel"], tmp_path, Generation("v3"), progress=False)
    assert len(notes) == 2 and "does not fit" in notes[0]
    assert rows_of(tmp_path, "parallel")[0]["result"].startswith("Error during inference")


def test_thoughts_before_the_last_question_are_dropped_and_no_think_is_written():
    said = assistant_message("<think>\nold\n</think>\n\nanswer", "v4", False)
    asked = [{"role": "user", "content": "q"}, said, {"role": "user", "content": "q2"}]
    text = render_qwen3(asked, [], "v4")
    assert "old" not in text and text.endswith("<|im_start|>assistant\n")
    assert render_qwen3(asked, [], "v4", thinking=False) == text + "<think>\n\n</think>\n\n"
    step = [*asked[:2], {"role": "tool", "name": "f", "content": "7"}]
    assert "<think>\nold\n</think>\n\nanswer" in render_qwen3(step, [], "v4")
    assert split_response("a</think>b</think>\n\nc") == ("c", "a")


@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_ids_of_a_prompt_are_those_of_its_text(tools):
    tokenizer = byte_tokenizer()
    history = HandlerHistory(tokenizer, "v4", function_calling=bool(tools))
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "é <|im_start|> <think>"}]
    asked += [
        assistant_message("<think>\nx\n</think>\n\ny", "v4", False),
        {"role": "tool", "name": "f", "content": "1"},
    ]
    text = render_qwen3(asked, tools or (), "v4")
    assert list(history.first(asked, tools)) == tokenizer(text, add_special_tokens=False)["input_ids"]


class Completions(BaseHTTPRequestHandler):
    """Answers with the prompt's last word, after one failure."""

    failed = False

    def do_GET(self):
        self._send(200, {"data": [{"id": "served"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not Completions.failed:
            Completions.failed = True
            self._send(503, {"error": "busy"})
        elif len(body["prompt"]) > 1000:
            self._send(400, {"error": "maximum context length"})
        else:
            reason = "length" if body["max_tokens"] < 3 else "stop"
            text = f"{body['model']}: {body['prompt'].split()[-1]}"
            self._send(200, {"choices": [{"text": text, "finish_reason": reason}]})

    def _send(self, status, answer):
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_any_openai_compatible_server_is_an_engine(monkeypatch):
    monkeypatch.setattr("dcore_jax.engines.text_server.time.sleep", lambda _: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tokenizer = byte_tokenizer()

    def request(text, name, tokens):
        return Request(tuple(tokenizer(text)["input_ids"]), SamplingParams(max_tokens=tokens), name)

    engine = TextServerEngine(f"http://127.0.0.1:{server.server_port}/v1/", tokenizer, slots=4)
    engine.submit([request("say hi", "a", 50), request("x " * 600, "b", 50), request("say no", "c", 2)])
    samples = {}
    while engine.in_flight:
        samples |= {sample.request_id: sample for sample in engine.poll()}
    assert tokenizer.decode(samples["a"].ids) == "served: hi"
    assert {name: s.finish_reason for name, s in samples.items()} == {
        "a": "stop",
        "b": "overlong",
        "c": "length",
    }
    assert engine.stats.requests == 3
    engine.close()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="/models"):
        TextServerEngine(f"http://127.0.0.1:{server.server_port}", tokenizer)


# -- with bfcl-eval from PyPI -------------------------------------------------------------------------------------------------

VERSIONS = ("v3", "v4")


def installation(version):
    try:
        return install(version)
    except UserError as error:
        pytest.skip(str(error))


HANDLERS = """
import types
openai = types.ModuleType("openai")
openai.OpenAI = openai.RateLimitError = type("Absent", (Exception,), {})
sys.modules["openai"] = openai
from bfcl_eval.model_handler.local_inference.qwen import QwenHandler
from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler

def response(text):
    usage = types.SimpleNamespace(prompt_tokens=0, completion_tokens=0)
    return types.SimpleNamespace(choices=[types.SimpleNamespace(text=text)], usage=usage)

answer = []
for case in given["cases"]:
    handler = object.__new__(QwenFCHandler if case["fc"] else QwenHandler)
    data = {"message": list(case["first"]), "function": case["functions"]}
    prompts = []
    for step in case["steps"]:
        prompts.append(handler._format_prompt(data["message"], data["function"]))
        parsed = handler._parse_query_response_prompting(response(step["text"]))
        handler._add_assistant_message_prompting(data, parsed)
        if "results" in step:
            parsed["model_responses_decoded"] = ["f()"] * len(step["results"])
            handler._add_execution_results_prompting(data, step["results"], parsed)
        else:
            handler._add_next_turn_user_message_prompting(data, [{"role": "user", "content": step["user"]}])
    prompts.append(handler._format_prompt(data["message"], data["function"]))
    answer.append(prompts)
"""


@pytest.mark.network
@pytest.mark.parametrize("version", VERSIONS)
def test_prompts_are_those_of_bfcl_evals_handlers(version, tmp_path):
    folder = installation(version)
    call = '<tool_call>\n{"name": "cd", "arguments": {"folder": "é"}}\n</tool_call>'
    steps = [
        {"text": f"<think>\nfirst\n</think>\n\n{call}", "results": ["ok"]},
        {"text": f"look: {call}\n{call}\n<tool_call>\n{{bad\n</tool_call>", "results": ["a", "b"]},
        {"text": "<think>\nso\n</think>\n\nDone.", "user": "and now?"},
        {"text": "[cd(folder='x')]", "results": ["ok"]},
        {"text": "no thought", "user": "<tool_response>odd</tool_response>"},
        {"text": "<think>\ncut", "user": "last"},
    ]
    cases, ours = [], []
    with Client(folder, version) as client:
        for fc in (False, True):
            for category in (
                "multi_turn_miss_func",
                "live_multiple",
                "java" if version == "v3" else "simple_java",
            ):
                (question, *_) = questions_of(client, category, fc)[3:]
                first, functions = list(question.turns[0]), list(question.functions)
                # bfcl-eval drops what is no JSON in v4 and keeps it, as text, in v3, whose prompts then hold no calls at all.
                cases.append({"fc": fc, "first": first, "functions": functions, "steps": steps})
                messages, prompts = list(first), []
                for step in steps:
                    prompts.append(render_qwen3(messages, functions, version))
                    messages.append(assistant_message(step["text"], version, fc))
                    if "results" in step:
                        messages += [
                            {"role": "tool", "name": "f", "content": result} for result in step["results"]
                        ]
                    else:
                        messages.append({"role": "user", "content": step["user"]})
                ours.append([*prompts, render_qwen3(messages, functions, version)])
    start = f"import json, sys; sys.path.insert(0, {str(folder)!r}); given = json.load(sys.stdin)\n"
    done = subprocess.run(
        [sys.executable, "-c", start + HANDLERS + "\nprint('ANSWER', json.dumps(answer))\n"],
        input=json.dumps({"cases": cases}), capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "BFCL_PROJECT_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.rpartition("ANSWER")[2])
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine == expected


def written(calls, fc):
    pairs = [next(iter(call.items())) for call in calls]
    if fc:
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': n, 'arguments': g})}\n</tool_call>" for n, g in pairs
        )
    return "[" + ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in g.items())})" for n, g in pairs) + "]"


@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("version", "mode"), [("v3", "prompt"), ("v4", "fc")])
def test_the_reference_calls_played_as_a_model_are_all_right(version, mode, tmp_path):
    """200 of 200 in each multi-turn category, through the player; a model that says nothing has none."""
    folder, names = installation(version), ("base", "miss_func", "miss_param", "long_context")
    categories = [f"multi_turn_{name}" for name in names]
    with Client(folder, version) as client:
        scripts = []
        for category in categories:
            for index in range(len(client.ask("ids", category=category))):
                turns = client.ask("reference_calls", category=category, index=index)
                scripts.append(
                    [
                        t
                        for calls in turns
                        for t in ([written(calls, mode == "fc")] if calls else []) + ["Done."]
                    ]
                )
        notes = generate(
            model(scripts), client, categories, tmp_path / "M", Generation(version, mode), progress=False
        )
        silent = [["Done."] * 9] * 80
        few = Generation(version, mode, limit=20)
        generate(model(silent), client, categories, tmp_path / "N", few, progress=False)
    assert not notes
    gold = score_results(tmp_path / "M", folder, version, mode=mode).counts()
    assert {name: tuple(count)[:2] for name, count in gold.items()} == dict.fromkeys(categories, (200, 200))
    nothing = score_results(tmp_path / "N", folder, version, mode=mode).counts()
    assert {name: tuple(count)[:2] for name, count in nothing.items()} == dict.fromkeys(categories, (0, 20))
