"""Awkward text at every place of a call, in every notation and shape: read back, or counted; never "no call expected"."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.calls import CALL_FORMATS, calls_equal, parse_any_response
from dcore_jax.data import Malformed, read_records, render
from dcore_jax.distill.seeds import parse_seed
from dcore_jax.rl.prompts import questions_of, read_questions
from qwen_tokenizer import byte_tokenizer
from shapes import END, TOOL, USER
from test_calls_notation import calls, texts, written_by_a_stranger

THOUGHTS = ["<think>\nw\n</think>\n\n", "<think> w </think>\n", "w\n</think>\n\n", ""]


def spoken(text):
    return [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": text}]


# Rows around the text of a turn, and around calls that are listed.
WITH_TEXT = {
    "messages": lambda text: {"messages": [USER, {"role": "assistant", "content": text}]},
    "messages with tools": lambda text: {
        "messages": [USER, {"role": "assistant", "content": text}],
        "tools": [TOOL],
    },
    "parts": lambda text: {
        "messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    },
    "sharegpt": lambda text: {"conversations": spoken(text)},
    "function_call": lambda text: {
        "conversations": [spoken("")[0], {"from": "function_call", "value": text}]
    },
    "completion": lambda text: {"prompt": [USER], "completion": text},
    "alpaca or toolrl": lambda text: {"instruction": "Call.", "input": "<user> x </user>", "output": text},
    "glaive": lambda text: {"system": "", "chat": f"USER: x\n\nASSISTANT: {text}"},
    "ground truth": lambda text: {"prompt": [USER], "reward_model": {"ground_truth": text}},
    "ground truth in a list": lambda text: {"prompt": [USER], "reward_model": {"ground_truth": [text]}},
}
LISTED = {
    "tool_calls": lambda listed: {
        "messages": [USER, {"role": "assistant", "tool_calls": listed}],
        "tools": [TOOL],
    },
    "arguments as text": lambda listed: {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{**c, "arguments": json.dumps(c["arguments"])} for c in listed],
            },
        ]
    },
    "xlam": lambda listed: {"query": "x", "answers": json.dumps(listed), "tools": json.dumps([TOOL])},
    "reference": lambda listed: {"messages": [USER], "reference": listed, "tools": [TOOL]},
    "ground truth": lambda listed: {"prompt": [USER], "reward_model": {"ground_truth": listed}},
    "ground truth as text": lambda listed: {
        "prompt": [USER],
        "reward_model": {"ground_truth": json.dumps(listed)},
    },
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "rows.jsonl"


def check(row, these, path):
    """The row's calls are these wherever they are read, and its turn is learned whole, or there is a reason."""
    path.write_text(json.dumps(row) + "\n")
    questions, rejections = read_questions([path], "qwen")
    assert len(questions) + rejections.total == 1
    for question in questions:
        assert calls_equal(question.reference, these)
    for seed in parse_seed("jsonl", json.loads(json.dumps(row)), "here:1"):
        assert isinstance(seed, Malformed) or calls_equal(seed.reference, these)

    records, rejections = read_records(path)
    assert len(records) + rejections.total == 1
    for record in records:
        samples, rejected = render(record, byte_tokenizer(), max_length=4000)
        assert sum(sample.turns for sample in samples) + len(rejected) == 1
        for sample in samples:
            learned = byte_tokenizer().decode(sample.tokens[sample.loss_mask])
            parsed, _ = parse_any_response(learned.removesuffix(END))
            assert parsed.error if parsed.calls is None else calls_equal(parsed.calls, these)


@settings(max_examples=150, deadline=None)
@given(calls, st.sampled_from(CALL_FORMATS), st.sampled_from(THOUGHTS), st.sampled_from(sorted(WITH_TEXT)))
def test_calls_in_a_text_are_read_back_or_counted(path, these, notation, thought, shape):
    check(WITH_TEXT[shape](thought + written_by_a_stranger(these, notation)), these, path)


@settings(max_examples=100, deadline=None)
@given(calls, st.sampled_from(sorted(LISTED)))
def test_listed_calls_are_read_back_or_counted(path, these, shape):
    listed = [{"name": call.name, "arguments": call.arguments} for call in these]
    check(LISTED[shape](listed), these, path)


@settings(max_examples=100, deadline=None)
@given(calls, st.sampled_from(CALL_FORMATS), st.sampled_from(sorted(WITH_TEXT)), st.integers(1, 40))
def test_calls_that_are_cut_off_are_never_an_expected_silence(these, notation, shape, kept):
    text = written_by_a_stranger([type(call)("write", call.arguments) for call in these], notation)
    row = WITH_TEXT[shape](THOUGHTS[0] + text[: max(len(text) - kept, 24)])
    for found in questions_of(json.loads(json.dumps(row)), "here:1", "rows", "qwen"):
        assert isinstance(found, str) or found.reference


@settings(max_examples=100, deadline=None)
@given(texts, texts, st.sampled_from(["user", "tool", "system"]))
def test_awkward_text_before_a_call_changes_nothing_of_it(path, first, second, role):
    call = {"name": "tide", "arguments": {"harbour": first}}
    messages = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "tool_calls": [call]}]
    messages.insert({"system": 0, "user": 1, "tool": 2}[role], {"role": role, "content": second})
    path.write_text(json.dumps({"messages": messages[role == "system" :], "tools": [TOOL]}) + "\n")
    questions, rejections = read_questions([path], "qwen")
    assert len(questions) + rejections.total == 1
    for question in questions:
        assert [dict(call.arguments) for call in question.reference] == [{"harbour": first}]
        assert question.messages[-1 if role == "tool" else 0]["content"] in (second, USER["content"], "s")
