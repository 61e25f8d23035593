"""tau2 and ToolTalk as PyPI has them: what their reference answers score, and what no call at all does.

tau-bench and ACEBench come from clones of the user's: DCORE_TAU_BENCH and DCORE_ACEBENCH name them, else those tests skip.
"""

import json
import os
from pathlib import Path

import pytest

import oracles
from dcore_jax import cli
from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.install import install

pytestmark = pytest.mark.network
DOMAINS = ("airline", "retail", "telecom")


def installed(benchmark):
    try:
        return install(benchmark, oracles.CACHE / benchmark)
    except UserError as error:
        pytest.skip(str(error))


def checkout(variable):
    path = Path(os.environ.get(variable, "/nowhere"))
    if not path.is_dir():
        pytest.skip(f"{variable} names no clone")
    return path


def correct(output, *options):
    cli.main(["eval", *options, "--output", str(output)])
    summary = json.loads((output / "summary.json").read_text())
    return {name: found["correct"] for name, found in summary["categories"].items()}, summary


@pytest.mark.parametrize(("agent", "found"), [("reference", (30, 30, 30)), ("empty", (10, 4, 0))])
def test_tau2s_first_thirty_tasks_of_each_domain(agent, found, tmp_path):
    options = ("tau2", "--tasks", "30", "--agent", agent, "--folder", str(installed("tau2")))
    counts, summary = correct(tmp_path, *options)
    assert counts == dict(zip(DOMAINS, found)) and summary["all"]["total"] == 90
    assert summary["left_out"] == []


def test_a_stored_trajectory_of_tau2_scores_as_it_did_and_a_changed_one_does_not(tmp_path):
    folder = ("--folder", str(installed("tau2")), "--domains", "telecom", "--tasks", "2")
    counts, _ = correct(tmp_path / "a", "tau2", *folder, "--agent", "reference")
    stored = tmp_path / "a" / "trajectories.jsonl"
    again, _ = correct(tmp_path / "b", "tau2", *folder, "--predictions", str(stored))
    assert counts == again == {"telecom": 2}
    header, first, second = map(json.loads, stored.read_text().splitlines())
    first["trajectory"]["messages"] = (
        first["trajectory"]["messages"][:2] + first["trajectory"]["messages"][-1:]
    )
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, (header, first, second))))
    changed, _ = correct(tmp_path / "c", "tau2", *folder, "--predictions", str(tmp_path / "c.jsonl"))
    assert changed == {"telecom": 1}


@pytest.mark.parametrize(("agent", "found"), [("reference", (28, 50)), ("empty", (0, 0))])
def test_tooltalks_78_conversations(agent, found, tmp_path):
    counts, summary = correct(tmp_path, "tooltalk", "--agent", agent, "--folder", str(installed("tooltalk")))
    assert counts == dict(zip(("easy", "hard"), found))
    assert summary["metrics"]["ground_truths"] == 266
    assert summary["metrics"]["recall"] == (1.0 if agent == "reference" else 0.0)


@pytest.mark.parametrize(("agent", "least"), [("reference", 1.0), ("empty", 0.0)])
def test_tau_benchs_first_tasks(agent, least, tmp_path):
    clone = checkout("DCORE_TAU_BENCH")
    _, summary = correct(tmp_path, "tau-bench", "--checkout", str(clone), "--tasks", "6", "--agent", agent)
    assert summary["all"]["accuracy"] == 1.0 if least else summary["all"]["accuracy"] < 0.5


def test_rewards_that_tau_bench_stored_are_found_again(tmp_path):
    clone = checkout("DCORE_TAU_BENCH")
    stored = clone / "historical_trajectories" / "gpt-4o-airline.json"
    options = ("--domains", "airline", "--tasks", "8", "--predictions", str(stored))
    correct(tmp_path, "tau-bench", "--checkout", str(clone), *options)
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    rewards = {
        (f"airline/{row['task_id']}", row["trial"]): row["reward"] for row in json.loads(stored.read_text())
    }
    assert [item["reward"] for item in items] == [rewards[item["id"], item["trial"]] for item in items]
    assert len(items) == 32 and 0 < sum(item["reward"] for item in items) < 32


def test_acebenchs_own_checker_reads_what_is_written(tmp_path):
    """Its checker takes the blanks out of an answer before it compares values inside lists and mappings: not all are right."""
    clone = checkout("DCORE_ACEBENCH")
    options = ("--checkout", str(clone), "--agent", "reference")
    _, summary = correct(tmp_path, "acebench", *options)
    assert summary["all"] == {"correct": 904, "total": 973, "accuracy": 904 / 973}
    assert all(
        summary["categories"][f"special_{name}"]["accuracy"] == 1 for name in ("incomplete", "irrelevant")
    )
