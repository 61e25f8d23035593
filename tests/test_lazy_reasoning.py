"""Lazy reasoning of stored outputs and rollouts, on small files whose counts can be worked out by hand."""

import json
from pathlib import Path

import pytest

from dcore_jax import cli
from dcore_jax.errors import UserError
from dcore_jax.evaluation.lazy_reasoning.behaviours import BEHAVIOURS, behaviour_of, count_behaviours
from dcore_jax.evaluation.lazy_reasoning.thoughts import read_wrong_ids, thought_in
from oracles import qwen3_folder
from qwen_tokenizer import byte_tokenizer

LONG = "wait, but however " + "x" * 400  # 418 bytes, 3 reflections
LONGER = "wait, but however alternatively " + "x" * 400  # 4 reflections
STORED = Path(__file__).parents[2] / "shared" / "data" / "dcore_release" / "Qwen3-8B"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def stored(tmp_path):
    """Five answers of `parallel`, two of them wrong, and one of `live_parallel`."""
    thoughts = [LONG, LONG, "short, wait wait wait", LONGER, ""]
    rows = [
        {"id": f"parallel_{i}", "result": "[f()]", "reasoning_content": t} for i, t in enumerate(thoughts)
    ]
    rows[4]["result"] = f"<think>\n{LONGER}"  # a thought that never ended
    write_lines(tmp_path / "result" / "M" / "BFCL_v3_parallel_result.json", rows)
    live = [{"id": "live_parallel_0-0-0", "result": "[f()]", "reasoning_content": LONGER}]
    write_lines(tmp_path / "result" / "M" / "BFCL_v3_live_parallel_result.json", live)
    header = {"accuracy": 0.0, "correct_count": 3, "total_count": 5}
    wrong = [{"id": f"parallel_{i}"} for i in (1, 2)]
    write_lines(tmp_path / "score" / "M" / "BFCL_v3_parallel_score.json", [header, *wrong])
    write_lines(tmp_path / "score" / "M" / "BFCL_v3_live_parallel_score.json", [header])
    return tmp_path


def summary_of(folder, *arguments):
    cli.main(["lazy", "--output", str(folder / "lazy"), *map(str, arguments)])
    return json.loads((folder / "lazy" / "summary.json").read_text())


def test_ratios_by_both_rules(stored, tokenizer):
    given = ("--results", stored / "result", "--scores", stored / "score", "--tokenizer", tokenizer)
    # Release: only parallel_1 is long, reflects thrice and is wrong; the empty field is a thought to its script.
    release = summary_of(stored, *given, "--rule", "release")
    assert release["groups"] == {"parallel": {"lazy": 1, "total": 6, "ratio": pytest.approx(1 / 6)}}
    # Paper: more than three reflections, whether right or wrong; the thought that never ended is one too.
    paper = summary_of(stored, *given, "--rule", "paper")
    assert paper["groups"] == {"parallel": {"lazy": 3, "total": 6, "ratio": 0.5}}
    assert paper["categories"]["live_parallel"] == {"lazy": 1, "total": 1, "ratio": 1.0}
    written = {path.name for path in (stored / "lazy").iterdir()}
    for figure in ("3a_behaviours", "3b_lazy_ratio", "8_length", "9_reflections", "10_thresholds"):
        assert f"figure_{figure}.png" in written
    assert "parallel_3" in (stored / "lazy" / "report.html").read_text()


def test_verdicts_come_from_an_evaluation_too_and_a_category_without_is_named(stored, tokenizer, capsys):
    items = [{"id": f"parallel_{i}", "category": "parallel", "correct": i not in (0, 1)} for i in range(5)]
    write_lines(stored / "eval" / "items.jsonl", items)
    found = summary_of(
        stored, "--results", stored / "result", "--scores", stored / "eval", "--tokenizer", tokenizer
    )
    assert found["groups"]["parallel"] == {"lazy": 2, "total": 5, "ratio": 0.4}
    assert any("no scores of live_parallel" in note for note in found["left_out"])
    assert "no scores of live_parallel" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no BFCL_v3"):
        read_wrong_ids(stored / "result")


def test_rollouts_of_a_run_are_read_by_their_own_categories(tmp_path, tokenizer):
    def rollout(response, correct, category):
        return {"step": 1, "group": 0, "category": category, "response": response, "correct": correct}

    rows = [
        rollout(f"<think>\n{LONG}\n</think>\n\n[f()]", False, "single"),
        rollout(f"<think>\n{LONG}\n</think>\n\n[f()]", True, "single"),
        rollout("[f()]", True, "single"),
        rollout("<think>\nshort\n</think>\n\n[f()]", False, "several"),
    ]
    write_lines(tmp_path / "run" / "rollouts.jsonl", rows)
    with (tmp_path / "run" / "rollouts.jsonl").open("a") as log:
        log.write('{"cut')
    found = summary_of(tmp_path, "--results", tmp_path / "run", "--tokenizer", tokenizer)
    assert found["groups"] == {
        "single": {"lazy": 1, "total": 2, "ratio": 0.5},
        "several": {"lazy": 0, "total": 1, "ratio": 0.0},
    }
    assert (
        "rollouts.jsonl:5" in found["left_out"][0] and "1 responses without a thought" in found["left_out"][1]
    )


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think>\na\n</think>\n\nb", "\na\n"),
        ("a\n</think>\n\nb", "a\n"),
        ("<think>\nnever closed", "\nnever closed"),
        ("no thought", ""),
    ],
)
def test_a_thought_is_found_in_its_tags(text, thought):
    assert thought_in(text) == thought


@pytest.mark.parametrize(
    ("sentence", "behaviour"),
    [
        ("Wait, first let me check.", "reflection"),
        ("Let me check the first one.", "verification"),
        ("First, I need the weather.", "decomposition"),
        ("1. The weather in Rome", "decomposition"),
        ("The city is Rome.", "deduction"),
        ("The attribute is a button.", "deduction"),
    ],
)
def test_a_sentence_is_of_the_first_behaviour_whose_cue_it_holds(sentence, behaviour):
    assert behaviour_of(sentence) == behaviour


def test_every_sentence_is_counted_once():
    counts = count_behaviours("The value is 3.5 in os.path. But is it? Verify that!\n\nThen call f.\n...")
    assert counts == dict(zip(BEHAVIOURS, (1, 1, 1, 1)))


@pytest.mark.network
@pytest.mark.skipif(not STORED.exists(), reason="no stored outputs")
def test_the_releases_published_ratios_with_the_real_vocabulary(tmp_path):
    found = summary_of(
        tmp_path, "--results", STORED / "result", "--scores", STORED / "score", "--tokenizer", qwen3_folder()
    )
    counts = {name: (row["lazy"], row["total"]) for name, row in found["groups"].items()}
    assert counts == {"parallel": (8, 216), "irrelevance": (102, 1122)}
