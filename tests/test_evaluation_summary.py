"""What every evaluation writes, read back as a stranger's script would."""

import json

import pytest

from dcore_jax import cli
from dcore_jax.errors import UserError
from dcore_jax.evaluation.summary import Evaluation, Item, read_evaluation, summary_text, write_evaluation

EVALUATION = Evaluation(
    "bench",
    "a <model>",
    (
        Item("a", "live", 1.0),
        Item("b", "live", 0.5, reason="wrong <value>"),
        Item("a", "multi", 0.0, trial=1),
    ),
    left_out=("results.json:3: cut line",),
    published={"D-CORE": {"live": 81.5, "other": 3.0}},
    metrics={"pass^2": 0.25},
)


def test_summary_counts_whole_rewards_by_category(tmp_path):
    page = write_evaluation(tmp_path, EVALUATION, seconds=2.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["categories"] == {
        "live": {"correct": 1, "total": 2, "accuracy": 0.5},
        "multi": {"correct": 0, "total": 1, "accuracy": 0.0},
    }
    assert summary["all"] == {"correct": 1, "total": 3, "accuracy": pytest.approx(1 / 3)}
    assert summary["left_out"] == ["results.json:3: cut line"]
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [(row["id"], row["trial"], row["correct"]) for row in rows] == [
        ("a", 0, True),
        ("b", 0, False),
        ("a", 1, False),
    ]
    html = page.read_text()
    assert "a &lt;model&gt;" in html and "wrong &lt;value&gt;" in html and "81.5" in html


def test_an_evaluation_is_read_back_and_another_folder_is_refused(tmp_path):
    write_evaluation(tmp_path, EVALUATION, seconds=2.0)
    again = read_evaluation(tmp_path)
    assert again.items == EVALUATION.items and again.counts() == EVALUATION.counts()
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="holds no evaluation"):
        read_evaluation(tmp_path)


def test_the_terminal_shows_what_was_left_out():
    text = summary_text(EVALUATION)
    assert "50.00%" in text and "1 damaged or left out" in text and "pass^2: 0.25" in text


def test_a_wrong_benchmark_is_one_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", "bfcll"])
    assert capsys.readouterr().err.startswith("error: dcore eval knows no 'bfcll'")
