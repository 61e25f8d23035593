"""Benchmarks in processes of their own: played, kept, resumed and scored, against small stand-ins made up here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from dcore_jax import cli
from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.process import HarnessError, HarnessProcess
from dcore_jax.evaluation.prompting import DECOMPOSE, PromptingConfig
from dcore_jax.evaluation.summary import Item
from dcore_jax.evaluation.trials import pass_hat_metrics
from stand_in_benchmarks import acebench_checkout, tau_bench_checkout


@pytest.fixture(scope="module")
def tau_bench(tmp_path_factory):
    return tau_bench_checkout(tmp_path_factory.mktemp("tau-bench"))


@pytest.fixture(scope="module")
def acebench(tmp_path_factory):
    return acebench_checkout(tmp_path_factory.mktemp("acebench"))


def run(benchmark, checkout, output, *options):
    words = ["eval", benchmark, "--checkout", str(checkout), "--output", str(output), *options]
    cli.main(words + (["--domains", "airline"] if benchmark == "tau-bench" else []))
    rows = [json.loads(line) for line in (output / "items.jsonl").read_text().splitlines()]
    return json.loads((output / "summary.json").read_text()), rows


@pytest.fixture(scope="module")
def played(tau_bench, tmp_path_factory):
    output = tmp_path_factory.mktemp("played")
    return output, *run("tau-bench", tau_bench, output, "--agent", "reference", "--trials", "2")


def test_the_reference_is_right_and_its_trajectories_are_kept(played):
    output, summary, _ = played
    assert summary["categories"] == {"airline": {"correct": 6, "total": 6, "accuracy": 1.0}}
    assert summary["metrics"] == {"pass^1": 1.0, "pass^2": 1.0} and summary["left_out"] == []
    rows = [json.loads(line) for line in (output / "trajectories.jsonl").read_text().splitlines()]
    (first,) = [row for row in rows[1:] if (row["task"], row["trial"]) == ("airline/0", 1)]
    said = {"name": "respond", "kwargs": {"content": "five"}}
    paid = [{"name": "pay", "kwargs": {"amount": amount}} for amount in (2, 3)]
    assert first["trajectory"] == {"actions": [*paid, said], "ended": True, "reward": 1.0}


def test_a_player_without_calls_earns_only_what_no_call_changes(tau_bench, tmp_path):
    _, items = run("tau-bench", tau_bench, tmp_path, "--agent", "empty")
    assert [item["correct"] for item in items] == [False, True, True]
    assert items[0]["reason"] == "another end state than the reference's"


def test_stored_trajectories_are_scored_and_damage_is_told_by_line(tau_bench, played, tmp_path):
    lines = (played[0] / "trajectories.jsonl").read_bytes().splitlines()
    chosen = [line for line in lines[1:] if b'"trial": 0' in line]
    chosen.sort(key=lambda line: json.loads(line)["task"])
    stored = [
        chosen[0].replace(b'"amount": 3', b'"amount": 4'),
        chosen[1],
        chosen[1],
        chosen[2][:40],
        b"\xff\xfe",
    ]
    (tmp_path / "stored.jsonl").write_bytes(
        b"\n".join(stored) + b'\n{"task": "airline/9", "trajectory": {}}\n'
    )
    summary, items = run(
        "tau-bench", tau_bench, tmp_path / "out", "--predictions", str(tmp_path / "stored.jsonl")
    )
    assert [item["correct"] for item in items] == [False, True, False]
    assert [line.split(": ")[0] for line in summary["left_out"][:4]] == [
        f"stored.jsonl:{i}" for i in (3, 4, 5, 6)
    ]
    assert items[2]["reason"] == "no trajectory of 1 of 1 parts"


def test_results_that_tau_bench_wrote_are_scored(tau_bench, tmp_path):
    calls = [
        {"function": {"name": "pay", "arguments": '{"amount": 5}'}},
        {"function": {"name": "pay", "arguments": "{}"}},
    ]
    traj = [
        {"role": "assistant", "content": None, "tool_calls": calls},  # only the first is an action
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "five euros"},
        {"role": "user", "content": "###STOP###"},
    ]
    cut = [{"task_id": 2, "trial": 0, "traj": traj[:2]}]
    (tmp_path / "r.json").write_text(json.dumps([{"task_id": 0, "trial": 0, "traj": traj}, *cut]))
    _, items = run("tau-bench", tau_bench, tmp_path / "out", "--predictions", str(tmp_path / "r.json"))
    assert [item["correct"] for item in items] == [True, False, False]
    assert items[2]["reason"] == "the conversation did not end"


def test_a_run_goes_on_where_it_was_and_refuses_another(tau_bench, played, tmp_path, capsys):
    lines = (played[0] / "trajectories.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trajectories.jsonl").write_text("".join(lines[:4]) + lines[4][:30])  # killed while it wrote
    options = ("--agent", "reference", "--trials", "2")
    summary, _ = run("tau-bench", tau_bench, tmp_path, *options)
    assert summary["all"]["correct"] == 6
    kept = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    assert [line + "\n" for line in kept[:4]] == lines[:4] and len(kept) == 1 + 3 + 1 + 3
    with pytest.raises(SystemExit):
        run("tau-bench", tau_bench, tmp_path, "--agent", "empty")
    assert "holds the trajectories of another run" in capsys.readouterr().err


class _Server(BaseHTTPRequestHandler):
    """A chat server that pays what is wanted, as the agent; and that says a word, then stops, as the user."""

    asked: ClassVar[list] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((body, self.headers["Authorization"]))
        if body["model"] == "user":
            message = {
                "content": "pay 2, then 3"
                if len(body["messages"]) < 2 and body["messages"][0]["content"] == "start"
                else "###STOP###"
            }
        else:
            results = [m for m in body["messages"] if m["role"] == "tool"]
            amounts = {0: [2, 3]}.get(len(results), [])
            calls = [
                {"id": str(a), "function": {"name": "pay", "arguments": json.dumps({"amount": a})}}
                for a in amounts
            ]
            message = {
                "content": None if calls else "<think>\nhm\n</think>\n\nfive",
                "tool_calls": calls or None,
            }
        text = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def test_agent_and_user_may_be_openai_compatible_servers(tau_bench, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_KEY", "secret")
    monkeypatch.setenv("USER_KEY", "another secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, _Server.asked = f"http://127.0.0.1:{server.server_port}/v1", []
    agent = (
        "--url",
        url,
        "--model",
        "agent",
        "--agent.key-variable",
        "AGENT_KEY",
        "--decompose",
        "--no-thinking",
    )
    user = ("--user", url, "--user-model", "user", "--user-key-variable", "USER_KEY", "--tasks", "1")
    summary, _ = run("tau-bench", tau_bench, tmp_path, *agent, *user)
    server.shutdown()
    assert summary["all"]["correct"] == 1
    assert {key for body, key in _Server.asked if body["model"] == "user"} == {"Bearer another secret"}
    assert not any("secret" in path.read_text() for path in tmp_path.iterdir())
    first, key = next((body, key) for body, key in _Server.asked if body["model"] == "agent")
    assert key == "Bearer secret" and first["chat_template_kwargs"] == {"enable_thinking": False}
    assert (
        first["messages"][0]["content"].endswith(DECOMPOSE) and first["tools"][0]["function"]["name"] == "pay"
    )
    last = [body for body, _ in _Server.asked if body["model"] == "agent"][-1]
    assert [m["role"] for m in last["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert json.loads(last["messages"][2]["tool_calls"][1]["function"]["arguments"]) == {"amount": 3}


def test_acebench_reads_the_files_that_are_written_for_it(acebench, tmp_path):
    summary, _ = run("acebench", acebench, tmp_path, "--agent", "reference")
    assert {name: found["correct"] for name, found in summary["categories"].items()} == {
        "normal_pay": 3,
        "special_irrelevant": 1,
    }
    lines = (tmp_path / "results" / "data_normal_pay_result.json").read_text().splitlines()
    assert json.loads(lines[2]) == {"id": "normal_pay_2", "result": "[pay(amount=2)]"}
    damaged = tmp_path / "stored"
    damaged.mkdir()
    (damaged / "data_normal_pay_result.json").write_text(
        "\n".join([lines[0], lines[1][:9], lines[0], lines[2]])
    )
    options = ("--predictions", str(damaged), "--categories", "normal_pay")
    summary, items = run("acebench", acebench, tmp_path / "out", *options)
    assert [item["correct"] for item in items] == [True, False, True]
    assert summary["left_out"] == [
        "data_normal_pay_result.json:2: invalid JSON",
        "data_normal_pay_result.json:3: normal_pay_0 is there already; the first counts",
        "data_normal_pay_result.json: no result of normal_pay_1",
    ]
    assert summary["metrics"] == {"normal_pay accuracy": pytest.approx(2 / 3)}


def test_what_is_missing_is_one_line(tmp_path, capsys):
    wrong = {
        ("tau-bench",): "clone of github.com/sierra-research/tau-bench",
        ("acebench",): "clone of github.com/ACEBench/ACEBench",
        ("acebench", "--checkout", str(tmp_path)): "is --checkout a clone of ACEBench?",
        ("tau2", "--folder", str(tmp_path)): "install_benchmark.py tau2",
        ("tooltalk", "--folder", str(tmp_path)): "install_benchmark.py tooltalk",
        ("tau2", "--domains", "hotel"): "domain 'hotel' is unknown",
    }
    for words, message in wrong.items():
        with pytest.raises(SystemExit):
            cli.main(["eval", *words])
        assert message in capsys.readouterr().err


def test_a_model_needs_a_user(tau_bench, tmp_path, capsys):
    for options, message in (
        (("--model", "m"), "no user: give --user"),
        (("--model", "m", "--user", "http://127.0.0.1:1"), "needs --user-model"),
        (("--model", "m", "--user", str(tmp_path / "none.json")), "no address and no JSON file"),
        (("--user", "silent"), "no model: give --model"),
        (("--url", "http://127.0.0.1:1"), "--url needs --model"),
    ):
        with pytest.raises(SystemExit):
            run("tau-bench", tau_bench, tmp_path / "out", *options)
        assert message in capsys.readouterr().err


def test_a_user_may_be_a_script(tau_bench, tmp_path):
    (tmp_path / "user.json").write_text(json.dumps({"airline/0": ["pay, please", "and?", "thank you"]}))
    options = ("--user", str(tmp_path / "user.json"), "--agent", "reference", "--tasks", "2")
    summary, _ = run("tau-bench", tau_bench, tmp_path / "out", *options)
    rows = [json.loads(line) for line in (tmp_path / "out" / "trajectories.jsonl").read_text().splitlines()]
    said = {row["task"]: len(row["trajectory"]["actions"]) for row in rows[1:]}
    # The agent repeats its last words until the user leaves; without turns the other user leaves at once.
    assert said == {"airline/0": 5, "airline/1": 1} and summary["all"]["correct"] == 2


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"tau_bench_worker does not start: .*No module named 'tau_bench'"):
        HarnessProcess("tau_bench_worker", isolated=True)
    with HarnessProcess("tau_bench_worker", paths=[tau_bench_checkout(tmp_path)]) as process:
        with pytest.raises(HarnessError, match="KeyError"):
            process.ask("reference", task="airline/0", part="0")
        assert len(process.ask("tasks", domains=["airline"], split="test")) == 3  # and goes on
        process._process.kill()
        process._process.wait()
        with pytest.raises(HarnessError, match="ended with status -9"):
            process.ask("tasks", domains=["airline"], split="test")


def test_pass_hat_is_counted_up_to_the_fewest_trials_of_a_task():
    items = [Item("a", "x", float(trial != 1), trial) for trial in range(3)] + [
        Item("b", "x", 1.0, trial) for trial in range(2)
    ]
    assert pass_hat_metrics(items) == {
        "pass^1": pytest.approx((2 / 3 + 1) / 2),
        "pass^2": pytest.approx((1 / 3 + 1) / 2),
    }


def test_decomposed_prompting_joins_the_system_turn_or_becomes_one():
    ask = PromptingConfig(decompose=True, no_think=True)
    given = [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "?"}]
    assert (
        ask.messages(given)[0]["content"] == f"Be brief.\n\n{DECOMPOSE}"
        and given[0]["content"] == "Be brief.\n"
    )
    assert [message["role"] for message in ask.messages(given[1:])] == ["system", "user"]
    assert ask.template_options(("a=1",)) == ("a=1", "enable_thinking=false")
    assert PromptingConfig().messages(given) == given and PromptingConfig().template_options() == ()
