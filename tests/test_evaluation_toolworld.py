"""`dcore eval toolworld`: the reference scores everything with either history, a silent model what wants no call."""

import json
from pathlib import Path

import pytest

from dcore_jax import UserError
from dcore_jax.cli import main
from dcore_jax.data.chat_template import ChatTemplate
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.evaluation import toolworld_benchmark
from dcore_jax.evaluation.toolworld_benchmark import ToolWorldEvaluation, parse_tasks
from dcore_jax.player import PlayableModel, scripted_engine
from dcore_jax.toolworld import KINDS, to_record
from dcore_jax.weights import local_folder


@pytest.fixture
def opened(monkeypatch):
    """Has the command play a script instead of a model."""

    def script(text_of):
        folder = local_folder("nano-base")
        tokenizer = load_tokenizer(folder)

        def open_model(model, engine, *, max_length, **_):
            ends = frozenset({tokenizer.eos_token_id})
            engine = scripted_engine(tokenizer, text_of)
            return PlayableModel(
                "m", folder, engine, ChatTemplate(tokenizer), ends, "python", 1088, max_length
            )

        monkeypatch.setattr(toolworld_benchmark, "open_model", open_model)

    return script


def reference(task):
    return [
        m["content"] for m in to_record(task)["messages"] if m["role"] == "assistant" and "weight" not in m
    ]


@pytest.mark.parametrize("history", ["rendered", "appended"])
def test_the_reference_played_as_a_model_scores_every_task(history, opened, tmp_path, capsys):
    tasks = parse_tasks("30,seed=3").tasks()
    opened(lambda number, turn: reference(tasks[number])[turn])
    main(
        [
            "eval",
            "toolworld",
            "--model",
            "m",
            "--tasks",
            "30,seed=3",
            "--output",
            str(tmp_path),
            "--history",
            history,
        ]
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["categories"]) == list(KINDS)
    assert all(c["correct"] == c["total"] > 0 and c["accuracy"] == 1 for c in summary["categories"].values())
    assert summary["all"] == {"correct": 30, "total": 30, "accuracy": 1.0}
    assert summary["metrics"] == {"by_state": 1.0, "several_calls": 1.0}
    assert "30 of 30" in capsys.readouterr().out and (tmp_path / "report.html").exists()


def test_a_model_that_says_nothing_scores_what_wants_no_call_in_each_trial(opened, tmp_path):
    opened(lambda number, turn: "no.")
    words = ["--model", "m", "--tasks", "toolworld:20,seed=3", "--trials", "2", "--temperature", "1"]
    main(["eval", "toolworld", *words, "--output", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    wanted = [task for task in parse_tasks("20,seed=3").tasks() if not task.reference]
    assert summary["all"]["correct"] == 2 * len(wanted) and summary["all"]["total"] == 40
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert {item["trial"] for item in items} == {0, 1}
    assert any(item["reason"].startswith("0 calls, ") for item in items)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model: give --model"),
        (["--tasks", "toolworld:3,split=nowhere"], "nowhere"),
        (["--trials", "3"], "trials=3 at temperature 0 are all the same"),
        (["--call-format", "xml"], "call format 'xml' is unknown"),
        (["--max-turns", "0"], "max_turns=0 must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "toolworld", *words])
    assert message in capsys.readouterr().err


def test_tasks_are_held_out_unless_another_split_is_named():
    assert (parse_tasks("7").split, parse_tasks("7").count, parse_tasks("toolworld").count) == (
        "test",
        7,
        240,
    )
    assert parse_tasks("toolworld:7,split=values").split == "values"
    with pytest.raises(UserError, match="no such folder"):
        toolworld_benchmark.evaluate(ToolWorldEvaluation(model="no_such", tasks="1"))


@pytest.mark.slow
def test_the_packaged_base_does_what_its_page_says(tmp_path):
    words = [
        "--model",
        "nano-base",
        "--tasks",
        "24,kinds=single+irrelevant+missing+parallel",
        "--output",
        str(tmp_path),
    ]
    main(["eval", "toolworld", *words, "--engine.slots", "32"])
    categories = json.loads((Path(tmp_path) / "summary.json").read_text())["categories"]
    shares = {name: count["accuracy"] for name, count in categories.items()}
    assert shares == {"single": 1.0, "parallel": 0.0, "irrelevant": 1.0, "missing": 1.0}
