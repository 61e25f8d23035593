"""BFCL against `bfcl-eval` itself, from PyPI: published figures, its own runner on answers made from its references, damage.

The runner of bfcl-eval is the oracle: it reads the same files in a process of its own, through the handlers' own decoders.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcore_jax import cli
from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl.client import Client
from dcore_jax.evaluation.bfcl.install import install

pytestmark = pytest.mark.network
STORED = Path(__file__).parents[2] / "shared" / "data" / "dcore_release"
# Published scores of the release; its other score files come from another run than its results.
PUBLISHED = {
    "live_simple": (220, 258),
    "live_multiple": (832, 1053),
    "live_parallel": (13, 16),
    "live_parallel_multiple": (18, 24),
    "live_irrelevance": (705, 882),
    "live_relevance": (14, 18),
}


@pytest.fixture(scope="module", params=["v3", "v4"])
def bfcl(request):
    try:
        return request.param, install(request.param)
    except UserError as error:
        pytest.skip(str(error))


def summary_of(tmp_path, *arguments):
    cli.main(["eval", "bfcl", "--output", str(tmp_path / "eval"), *map(str, arguments)])
    return json.loads((tmp_path / "eval" / "summary.json").read_text())


@pytest.mark.skipif(not STORED.exists(), reason="no stored outputs")
def test_stored_outputs_score_as_published_in_the_live_categories(tmp_path, bfcl):
    if bfcl[0] == "v4":
        pytest.skip("the stored outputs answer v3")
    start = time.monotonic()
    summary = summary_of(tmp_path, "--results", STORED)
    assert time.monotonic() - start < 60  # under 10 s on two idle cores; only a hang is caught here
    found = {name: summary["categories"][name] for name in PUBLISHED}
    assert {name: (row["correct"], row["total"]) for name, row in found.items()} == PUBLISHED
    assert summary["all"]["total"] == 3641 and summary["left_out"] == [] and summary["model"] == "Qwen3-8B"
    assert "live_multiple_1052-79-0" in summary["settings"]["matched by index"]


# -- answers made from the references, and bfcl-eval's own verdict on them ---------------------------------------------------

SINGLE = (
    "parallel",
    "live_multiple",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
    "multiple",
)
TURNS = ("multi_turn_base", "multi_turn_miss_func")

RUNNER = """
import io, contextlib, pathlib, types
import bfcl_eval.constants.model_config as models

openai = types.ModuleType("openai")
openai.OpenAI = openai.RateLimitError = type("Absent", (Exception,), {})
sys.modules["openai"] = openai
from bfcl_eval.model_handler.local_inference.qwen import QwenHandler
from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler
if given["version"] == "v3":
    from bfcl_eval.model_handler.api_inference.openai import OpenAIHandler as OpenAI
else:
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler as OpenAI
kind = {"prompt": QwenHandler, "tags": QwenFCHandler, "calls": OpenAI}[given["kind"]]
handler = object.__new__(kind)
handler.is_fc_model = given["kind"] != "prompt"
handler.model_name = "model"
models.MODEL_CONFIG_MAPPING["model"] = types.SimpleNamespace(underscore_to_dot=given["underscores"])
from bfcl_eval.eval_checker import eval_runner
scores = pathlib.Path(given["scores"])
answer = {}
for path in sorted(pathlib.Path(given["results"]).rglob("*_result.json")):
    category = eval_runner.extract_test_category(path)
    table = {}
    rows = eval_runner.load_file(path, sort_by_id=True)
    with contextlib.redirect_stdout(io.StringIO()):
        if given["version"] == "v3":
            table = {"leaderboard_table": {}}
            eval_runner.evaluate_task(category, None, scores, rows, "model", handler, table)
            table = table["leaderboard_table"]
        else:
            eval_runner.evaluate_task(category, None, scores, rows, "model", handler, table)
    score = next(p for p in scores.rglob("*_score.json") if eval_runner.extract_test_category(p) == category)
    lines = [json.loads(line) for line in score.read_text().splitlines()]
    answer[category] = {"head": lines[0], "wrong": [line["id"] for line in lines[1:]]}
"""


def runner_of_bfcl_eval(folder: Path, tmp_path: Path, **given):
    start = f"import json, sys; sys.path.insert(0, {str(folder)!r}); given = json.load(sys.stdin)\n"
    done = subprocess.run(
        [sys.executable, "-c", start + RUNNER + "\nprint('ANSWER', json.dumps(answer))\n"],
        input=json.dumps(given), capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "BFCL_PROJECT_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("ANSWER")[2])


def written(calls, kind, underscores):
    """Calls as a model of that kind writes them; `underscores`: an API's names."""
    pairs = [next(iter(call.items())) for call in calls]
    if kind == "calls":
        return [{n.replace(".", "_") if underscores else n: json.dumps(g)} for n, g in pairs]
    if kind == "tags":
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': n, 'arguments': g})}\n</tool_call>" for n, g in pairs
        )
    return "[" + ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in g.items())})" for n, g in pairs) + "]"


def first_answer(reference):
    """The first of every argument's accepted values; an argument that may be left out is."""
    calls = []
    for call in reference:
        ((name, given),) = call.items()
        chosen = {key: values[0] for key, values in given.items() if values[0] != ""}
        calls.append(
            {
                name: {
                    k: {i: j[0] for i, j in v.items()} if isinstance(v, dict) else v
                    for k, v in chosen.items()
                }
            }
        )
    return calls


def spoiled(answer, calls, kind, underscores, draw: random.Random):
    """Mostly the answer; else one of the ways in which models answer wrongly or strangely."""
    odd = [
        "",
        "I cannot do this.",
        "[]",
        "[f(x=1+2)]",
        "[f(x=a+1)]",
        "```python\n[f(x=1)]\n```",
        "<tool_call>\n{bad\n</tool_call>",
    ]
    fewer = written(calls[:-1], kind, underscores)
    changed = written(
        [{name: {**g, "extra": 1}} for call in calls for name, g in call.items()], kind, underscores
    )
    return draw.choices([answer, fewer, changed, draw.choice(odd)], [6, 1, 1, 1])[0]


def make_results(client, version, kind, underscores, folder):
    draw = random.Random(f"{version} {kind}")
    for category in SINGLE:
        ids = client.ask("ids", category=category)
        references = (
            client.ask("references_of", category=category) if "relevance" not in category else [{}] * len(ids)
        )
        lines = []
        for one, reference in zip(ids, references):
            calls = first_answer(reference["ground_truth"]) if reference else [{"f": {"x": 1}}]
            lines.append(
                {
                    "id": one,
                    "result": spoiled(written(calls, kind, underscores), calls, kind, underscores, draw),
                }
            )
        write(folder, version, category, lines)
    for category in TURNS:
        lines = []
        for index, one in enumerate(client.ask("ids", category=category)):
            turns = client.ask("reference_calls", category=category, index=index)
            result = [
                [
                    *([spoiled(written(calls, kind, False), calls, kind, False, draw)] if calls else []),
                    "Done.",
                ]
                for calls in turns
            ]
            lines.append({"id": one, "result": result if index % 17 else result[:-1]})
        lines[3]["result"] = "Error during inference: timeout"
        write(folder, version, category, lines)


def write(folder, version, category, lines):
    path = folder / "model" / f"BFCL_{version}_{category}_result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("kind", "underscores"), [("prompt", False), ("tags", False), ("calls", True)])
def test_other_models_score_as_with_bfcl_evals_own_runner(tmp_path, bfcl, kind, underscores):
    version, folder = bfcl
    with Client(folder, version) as client:
        make_results(client, version, kind, underscores, tmp_path / "results")
    ours = summary_of(tmp_path, "--results", tmp_path / "results")
    theirs = runner_of_bfcl_eval(
        folder, tmp_path, version=version, kind=kind, underscores=underscores,
        results=str(tmp_path / "results"), scores=str(tmp_path / "scores"),
    )  # fmt: skip
    expected = {
        name: (found["head"]["correct_count"], found["head"]["total_count"]) for name, found in theirs.items()
    }
    assert {name: (row["correct"], row["total"]) for name, row in ours["categories"].items()} == expected
    assert all(0.1 < correct / total < 1 for correct, total in expected.values()), expected
    items = [json.loads(line) for line in (tmp_path / "eval" / "items.jsonl").read_text().splitlines()]
    for name, found in theirs.items():
        wrong = {
            row["id"].partition("#")[0] for row in items if row["category"] == name and not row["correct"]
        }
        assert wrong == set(found["wrong"]), name


def test_a_models_text_is_not_run(tmp_path, bfcl):
    """bfcl-eval evaluates an argument's arithmetic and a call's name: neither may touch a file here."""
    version, folder = bfcl
    bait = tmp_path / "touched"
    attack = f"__import__('pathlib').Path({str(bait)!r}).touch()"
    with Client(folder, version) as client:
        prompt, calls = {"kind": "prompt", "underscores": False}, {"kind": "calls", "underscores": False}
        text = f"[cd(folder={attack} + 1)]"
        client.ask("score", category="live_simple", rows=[[0, text]], style=prompt)
        client.ask(
            "score", category="multi_turn_base", rows=[[0, [[text], [text], [text], [text]]]], style=prompt
        )
        client.ask("open", session="s", category="multi_turn_base", index=0)
        steps = [
            ([{f"{attack} or cd": json.dumps({"folder": "x"})}], calls),
            ([{"cd": json.dumps({"folder": "x", "y=" + attack + ", z": 1})}], calls),
            (f"[open(file={str(bait)!r}, mode='w')]", prompt),
        ]
        for step, style in steps:
            (call,) = client.ask("calls_of", step=step, style=style)
            assert "not defined" in client.ask("run_call", session="s", call=call)
    assert not bait.exists()


def test_sessions_keep_their_tools_apart(bfcl):
    version, folder = bfcl
    with Client(folder, version) as client:
        for session in ("a", "b"):
            client.ask("open", session=session, category="multi_turn_base", index=0)
        client.ask("run_call", session="a", call="mkdir(dir_name='new_here')")
        here, there = (client.ask("run_call", session=session, call="ls()") for session in "ab")
        assert "new_here" in here and "new_here" not in there
        client.ask("close", session="a")
        client.ask("open", session="a", category="multi_turn_base", index=0)
        assert client.ask("run_call", session="a", call="ls()") == there


def test_the_reference_calls_are_right_in_every_multi_turn_category(bfcl):
    version, folder = bfcl
    with Client(folder, version) as client:
        for category in ("base", "miss_func", "miss_param", "long_context"):
            name = f"multi_turn_{category}"
            number = len(client.ask("ids", category=name))
            gold = [client.ask("reference_calls", category=name, index=i) for i in range(number)]
            rows = [(i, [[calls] if calls else ["Done."] for calls in turns]) for i, turns in enumerate(gold)]
            verdicts = client.ask(
                "score", category=name, rows=rows, style={"kind": "calls", "underscores": False}
            )
            assert [valid for valid, _ in verdicts] == [True] * 200


def test_damage_is_reported_and_the_rest_scored(tmp_path, bfcl, capsys):
    version, folder = bfcl
    with Client(folder, version) as client:
        make_results(client, version, "prompt", False, tmp_path / "results")
    whole = summary_of(tmp_path, "--results", tmp_path / "results")
    items = (tmp_path / "eval" / "items.jsonl").read_text().splitlines()
    right = {row["id"]: row["correct"] for row in map(json.loads, items) if row["category"] == "parallel"}
    path = next((tmp_path / "results").rglob("*_parallel_result.json"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0][:40], *lines[1:], lines[5]]))
    capsys.readouterr()
    damaged = summary_of(tmp_path, "--results", tmp_path / "results")
    expected = sum(right.values()) - right["parallel_0"]
    assert damaged["categories"]["parallel"] == {
        "correct": expected,
        "total": 199,
        "accuracy": expected / 199,
    }
    said = [note.removeprefix(f"{path}:").split(":")[0] for note in damaged["left_out"]]
    assert said[:2] == ["1", "201"] and "parallel_0" in damaged["left_out"][2]
    assert damaged["categories"]["multiple"] == whole["categories"]["multiple"]
    assert "3 damaged or left out" in capsys.readouterr().out
