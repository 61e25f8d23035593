"""`dcore preview`: what is shown is what is trained, and what is left out is counted."""

import json
import re

import pytest

from dcore_jax.cli import main
from dcore_jax.data import parse_record, render
from dcore_jax.nano import build_tokenizer
from dcore_jax.preview import html_page, sample_segments, terminal_text

PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "tide", "parameters": PARAMETERS}}
CALL = {"function": {"name": "tide", "arguments": {"at": "<Ostend>"}}}
MESSAGES = [
    {"role": "user", "content": "high tide?"},
    {"role": "assistant", "content": "<think>\nask & see\n</think>\n\n", "tool_calls": [CALL]},
    {"role": "tool", "content": "at noon"},
    {"role": "assistant", "content": "<think>\ntell\n</think>\n\nAt noon."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def samples(tokenizer, messages):
    (record,) = parse_record({"messages": messages, "tools": [TOOL]}, origin="x:1")
    return render(record, tokenizer, max_length=4000).samples


def test_the_parts_joined_are_the_sample_and_the_learned_ones_its_loss_tokens(tokenizer):
    for sample in samples(tokenizer, MESSAGES):
        parts = sample_segments(sample, tokenizer)
        assert "".join(part.text for part in parts) == tokenizer.decode(sample.tokens)
        learned = "".join(part.text for part in parts if part.learned)
        assert learned == tokenizer.decode(sample.tokens[sample.loss_mask])


def test_thought_call_answer_response_and_end_are_told_apart(tokenizer):
    kinds = {
        (part.kind, part.text) for s in samples(tokenizer, MESSAGES) for part in sample_segments(s, tokenizer)
    }
    assert ("thought", "<think>\nask & see\n</think>") in kinds
    assert any(kind == "call" and '"<Ostend>"' in text for kind, text in kinds)
    assert any(kind == "answer" and text.strip() == "At noon." for kind, text in kinds)
    assert ("response", "<tool_response>\nat noon\n</tool_response>") in kinds
    assert ("end", "<|im_end|>") in kinds


def test_a_weighted_turn_shows_its_weight(tokenizer):
    messages = [*MESSAGES[:-1], {**MESSAGES[-1], "weight": 0.25}]
    shown = [("x:1", sample_segments(sample, tokenizer)) for sample in samples(tokenizer, messages)]
    assert "weight 0.25" in terminal_text(shown, colours=False) and "weight 0.25" in html_page("t", "", shown)


def test_the_page_escapes_what_data_hold_and_needs_no_other_file(tokenizer):
    shown = [("<b>x</b>:1", sample_segments(sample, tokenizer)) for sample in samples(tokenizer, MESSAGES)]
    page = html_page("<script>", "a < b", shown)
    assert (
        "<script>" not in page and "<Ostend>" not in page and "&lt;Ostend&gt;" in page and "a &lt; b" in page
    )
    assert not re.search(r"(?:src|href)=", page)


def run(tmp_path, capsys, rows, *options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["preview", str(path), "--model", "nano", "--page", str(tmp_path / "page.html"), *options])
    return capsys.readouterr().out, (tmp_path / "page.html").read_text()


def test_the_command_shows_samples_counts_notations_packs_and_what_is_left_out(tmp_path, capsys):
    marked = {**MESSAGES[-1], "train": False}
    rows = [
        {"messages": MESSAGES, "tools": [TOOL]},
        {"messages": [*MESSAGES[:-1], marked], "tools": [TOOL]},
        {"messages": [MESSAGES[0], {"role": "assistant", "content": '[tide(at="noon")]'}]},
        {"text": "no conversation"},
    ]
    out, page = run(tmp_path, capsys, rows, "--samples", "2")
    assert "the template asks for calls in python" in out
    assert "3 in 3 turns; written as tool_calls 2, python 1" in out
    assert "1 x a turn marked not to be trained" in out
    assert "1 x unknown format with fields text" in out
    assert re.search(r"5 turns, 4 learned, 1 rejected", out)
    assert "as RL     3 prompts, 3 expect a call" in out
    assert re.search(r"1 rows of 16,384 tokens .* 1 steps of 16 rows in 3 epochs", out)
    assert "learned thought" in out and "masked  context" in out
    assert "Sample 2" in page and "Sample 3" not in page


def test_rows_that_are_rl_prompts_are_shown_as_such(tmp_path, capsys):
    rows = [{"prompt": [MESSAGES[0]], "reward_model": {"ground_truth": '[tide(at="noon")]'}}]
    out, page = run(tmp_path, capsys, rows)
    assert "no sample for SFT" in out and "an RL prompt" in out
    assert 'expected: [tide(at="noon")]' in out and "RL prompt" in page


def test_what_is_missing_is_one_line(capsys):
    for words in (["preview"], ["preview", "x.jsonl"], ["preview", "gone.jsonl", "--model", "nano"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
