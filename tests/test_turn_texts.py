"""One sequence for many turns: the same ids learned, after the same ids, as with a sample for each turn; and at what cost."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.data import Record, render, samples_from_records
from dcore_jax.data.chat_template import ChatTemplate, render_chat
from dcore_jax.data.files import Malformed
from dcore_jax.data.rendering import end_of_turn_ids
from dcore_jax.data.turn_texts import one_sequence, questions, single_turn
from qwen_tokenizer import TEMPLATE, byte_tokenizer, qwen_tokenizer

CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "</tool_call>{% endfor %}"
)
STABLE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    f"{CALLS}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Templates that look at the whole conversation to write a part of it.
USERS = "messages{} | selectattr('role', 'equalto', 'user') | list | length"
COUNTING = "{{ " + USERS.format("") + " }} " + STABLE
LAST_MARKED = STABLE.replace(
    "{{ m.content or '' }}",
    "{{ m.content or '' }}{% if loop.last and m.role == 'assistant' %}.{% endif %}",
)
TWO_KEPT = STABLE.replace(
    "{% if m.reasoning_content %}",
    "{% if m.reasoning_content and " + USERS.format("[loop.index0:]") + " < 2 %}",
)
TEMPLATES = {
    "stable": STABLE, "qwen3": TEMPLATE, "counting": COUNTING, "last": LAST_MARKED, "two thoughts": TWO_KEPT,
}  # fmt: skip
TOOLS = ({"type": "function", "function": {"name": "ls", "parameters": {}}},)


def call(value):
    return {"type": "function", "function": {"name": "ls", "arguments": {"d": value}}}


words = st.text(alphabet="ab\n <>é", min_size=1, max_size=6).filter(str.strip)
assistant = st.builds(
    lambda text, thought, calls: {
        "role": "assistant", "content": text, "reasoning_content": thought, "tool_calls": [call(x) for x in calls],
    },
    words, words | st.just(""), st.lists(words, max_size=2),
)  # fmt: skip
exchanges = st.lists(
    st.tuples(st.sampled_from(["user", "tool"]), words, assistant, st.booleans()), min_size=1, max_size=7
)


@st.composite
def records(draw):
    """Conversations of questions, calls, results, thoughts on some turns, and turns that are weighted or not to be trained."""
    messages = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for number, (role, text, turn, doubled) in enumerate(draw(exchanges)):
        messages.append({"role": role if number else "user", "content": text})
        messages += [turn, {"role": "tool", "content": text}, {**turn, "content": "c"}] if doubled else [turn]
    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 1.0, 1.0, 0.25]), min_size=40, max_size=40))
    tools = draw(st.sampled_from([None, TOOLS]))
    loss = draw(st.sampled_from(["every", "every", "last"]))
    weights = None if weights is None else tuple(weights[: len(messages)])
    return Record(tuple(messages), tools, "c", "x:1", loss, weights)


def turn_by_turn(record, tokenizer, max_length):
    """(ids before, ids learned, weight) of each turn, rendered and tokenised by itself: what is to be learned."""
    found = Counter()
    turns = [i for i, m in enumerate(record.messages) if m["role"] == "assistant"]
    for turn in turns[-1:] if record.loss_turns == "last" else turns:
        try:
            piece = single_turn(ChatTemplate(tokenizer), record.messages, turn, record.tools)
        except Malformed:
            continue
        before, ids = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (piece.before, piece.text)
        )
        ends = [at for at, i in enumerate(ids) if i in end_of_turn_ids(tokenizer)]
        weight = 1.0 if record.turn_weights is None else record.turn_weights[turn]
        if len(ends) == 1 and ends[0] and len(before) + len(ids) <= max_length and weight:
            found[tuple(before), tuple(ids[: ends[0] + 1]), weight] += 1
    return found


def learned(samples):
    """The same of samples, whose turns are the runs of True in their masks."""
    found = Counter()
    for sample in samples:
        edges = np.flatnonzero(np.diff(np.pad(sample.loss_mask.astype(int), 1)))
        assert len(edges) == 2 * sample.turns
        for start, stop in edges.reshape(-1, 2):
            weights = {1.0} if sample.weights is None else {float(w) for w in sample.weights[start:stop]}
            (weight,) = weights
            tokens = tuple(sample.tokens.tolist())
            found[tokens[:start], tokens[start:stop], weight] += 1
    return found


@pytest.mark.parametrize("name", TEMPLATES)
@given(record=records(), max_length=st.sampled_from([60, 150, 4000]))
@settings(max_examples=60, deadline=None)
def test_what_is_learned_is_what_each_turn_alone_would_learn(name, record, max_length):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    samples, rejected = render(record, tokenizer, max_length=max_length)
    assert learned(samples) == turn_by_turn(record, tokenizer, max_length)
    turns = sum(m["role"] == "assistant" for m in record.messages)
    wanted = turns if record.loss_turns == "every" else 1
    assert sum(sample.turns for sample in samples) + len(rejected) == wanted


def conversation(turns, *, thoughts=False, tools=False):
    messages = []
    for i in range(turns):
        if not tools or i == 0:
            messages.append({"role": "user", "content": f"question {i}"})
        message = {"role": "assistant", "content": f"answer {i}"}
        if thoughts:
            message["reasoning_content"] = f"thought {i}"
        if tools:
            message["tool_calls"] = [call(f"/{i}")]
        messages.append(message)
        if tools:
            messages.append({"role": "tool", "content": f"result {i}"})
    return Record(tuple(messages), None, "c", "x:1")


@pytest.mark.parametrize(
    ("name", "shape", "samples"),
    [
        ("stable", {}, 1),
        ("stable", {"thoughts": True}, 1),
        ("qwen3", {"thoughts": True}, 20),  # thoughts are dropped at the next question
        ("qwen3", {"thoughts": True, "tools": True}, 1),  # and kept within one
        ("counting", {}, 20),
        ("last", {}, 20),
        ("two thoughts", {"thoughts": True}, 20),
    ],
)
def test_turns_share_a_sample_where_the_template_renders_them_alike(name, shape, samples):
    found, rejected = render(conversation(20, **shape), byte_tokenizer(TEMPLATES[name]), max_length=9000)
    assert (len(found), sum(sample.turns for sample in found), rejected) == (samples, 20, [])


def test_the_turns_of_each_question_share_a_sample_where_thoughts_are_dropped_at_the_next():
    parts = [conversation(4, thoughts=True, tools=True).messages for _ in range(3)]
    messages = tuple(message for part in parts for message in part)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    assert [len(group) for group in questions(messages, turns)] == [4, 4, 4]
    samples, rejected = render(Record(messages, None, "c", "x:1"), byte_tokenizer(TEMPLATE), max_length=9000)
    assert ([sample.turns for sample in samples], rejected) == ([4, 4, 4], [])


def test_what_fits_is_kept_and_every_later_turn_is_counted():
    tokenizer = byte_tokenizer(STABLE)
    ((whole,), _) = render(conversation(30), tokenizer, max_length=9000)
    ends = [at for at, token in enumerate(whole.tokens.tolist()) if token == tokenizer.eos_token_id]
    fits = ends[2 * 11 + 1] + 2  # with the line break behind the twelfth answer
    ((cut,), rejected) = render(conversation(30), tokenizer, max_length=fits)
    assert (cut.turns, len(cut.tokens)) == (12, fits)
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:fits])
    assert rejected == [f"longer than {fits} tokens"] * 18


def test_a_history_that_cannot_fit_is_neither_rendered_nor_tokenised(monkeypatch):
    lengths = []
    monkeypatch.setattr(
        "dcore_jax.data.turn_texts.render_chat",
        lambda *arguments, **options: lengths.append(len(arguments[1])) or render_chat(*arguments, **options),
    )
    for name, shape in (("stable", {}), ("qwen3", {"thoughts": True})):
        lengths.clear()
        _, rejected = render(conversation(2000, **shape), byte_tokenizer(TEMPLATES[name]), max_length=1000)
        assert len(rejected) > 1900
        assert max(lengths) < 600
        assert len(lengths) < 1000


def test_a_long_conversation_costs_its_length_a_few_times_over():
    tokenizer = byte_tokenizer(STABLE)
    rendered = []
    for turns in (100, 400):
        started = time.process_time()
        ((sample,), _) = render(conversation(turns), tokenizer, max_length=10**6)
        rendered.append((time.process_time() - started) / len(sample.tokens))
    # Sixteen times as much where every turn has its whole history rendered.
    assert rendered[1] < 3 * rendered[0]


def test_an_elided_history_is_not_believed_where_the_template_looks_at_all_of_it():
    messages = conversation(40).messages
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    sums = (
        "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}"
        + STABLE
    )
    for template in (COUNTING, LAST_MARKED, sums):
        assert one_sequence(ChatTemplate(byte_tokenizer(template)), messages, turns, None) is None


def test_a_boundary_that_the_tokenizer_merges_across_gives_each_turn_its_own_sample():
    # At inference the history "assistant\n" + "\n\nyes" is one text, in which the line breaks are one token.
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "\n\nyes")) * 2]
    samples, rejected = render(
        Record(tuple(messages), None, "c", "x:1"), qwen_tokenizer(STABLE), max_length=900
    )
    assert ([sample.turns for sample in samples], rejected) == ([1, 1], [])


def test_records_may_come_from_an_iterator_and_are_let_go():
    alive = []

    def stream():
        for i in range(2000):
            alive.append(i)
            yield conversation(3)

    store, report = samples_from_records(stream(), byte_tokenizer(STABLE), max_length=4000, progress=False)
    assert (len(store), report.records, report.turns, report.learned) == (2000, 2000, 6000, 6000)
    assert "6,000 turns, 6,000 learned, 0 rejected" in str(report)


def test_the_rows_of_a_weighted_record_are_the_same_text():
    record = conversation(3)
    plain = render(record, byte_tokenizer(STABLE), max_length=900).samples[0]
    weighted = Record(record.messages, None, "c", "x:1", "every", (1.0, 0.5, 1.0, 0.0, 1.0, 1.0))
    ((sample,), rejected) = render(weighted, byte_tokenizer(STABLE), max_length=900)
    assert rejected == ["a turn marked not to be trained"]
    np.testing.assert_array_equal(sample.tokens, plain.tokens)
    assert sorted(set(sample.weights[sample.loss_mask].tolist())) == [0.5, 1.0]
    assert plain.weights is None
    assert sample.turns == 2


def test_the_report_says_how_many_records_offer_tools_that_the_template_does_not_show():
    turns = ({"role": "user", "content": "look"}, {"role": "assistant", "content": "[ls()]"})
    told = ({"role": "system", "content": "You may call ls()."}, *turns)
    records = [
        Record(turns, TOOLS, "c", "x:1"),
        Record(told, TOOLS, "c", "x:2"),
        Record(turns, None, "c", "x:3"),
    ]

    without_tools = STABLE[STABLE.index("{% for m") :]

    def report(template, mask="last_turn"):
        return samples_from_records(
            records, byte_tokenizer(template), mask=mask, max_length=4000, progress=False
        )[1]

    assert report(without_tools).unseen_tools == 1
    assert "1 records offer tools that the model cannot see" in str(report(without_tools))
    for seen in (report(TEMPLATE), report(without_tools, mask="release")):
        assert seen.unseen_tools == 0 and "unseen" not in str(seen)


MEMORY = """
import resource
from dcore_jax.data import Record, samples_from_records
from qwen_tokenizer import byte_tokenizer
from test_turn_texts import TEMPLATES

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
messages = [{"role": role, "content": "word " * 68} for _ in range(50) for role in ("user", "assistant")]
records = (Record(tuple(messages), None, "c", "x:1") for _ in range(24))
tokenizer = byte_tokenizer(TEMPLATES["stable"])
tokenizer("word")
before = peak()
_, report = samples_from_records(records, tokenizer, max_length=10**6, progress=False)
assert report.learned == 1200
print(peak() - before)
"""


def test_reading_24_records_of_50_turns_takes_less_than_100_mib():
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
