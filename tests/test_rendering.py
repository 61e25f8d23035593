"""Rendering and masks, checked against renderings written out by hand, transformers' own masks, and tiktoken."""

import doctest
import inspect
import json
import re
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dcore_jax.data import Record, load_samples, parse_record, read_records, render, samples_from_records
from dcore_jax.data.rendering import end_of_turn_ids, render_batch
from dcore_jax.errors import UserError
from dcore_jax.nano import build_tokenizer
from dcore_jax.toolworld import generate_tasks, to_record
from qwen_tokenizer import (
    ALL_WORDS,
    SPECIALS,
    SPLIT,
    TEMPLATE,
    byte_tokenizer,
    qwen_tokenizer,
    ranks,
)

END = "<|im_end|>"
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {}}}}


def chat(*turns: str, tools=None, loss_turns="every", **last) -> Record:
    """A record from texts: user, assistant, user, ... ; `last` adds fields to the last message."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    messages[-1].update(last)
    return Record(tuple(messages), tools, "chat", "here:1", loss_turns)


def texts(sample, tokenizer) -> tuple[str, str]:
    """(all of it, what carries loss), decoded."""
    return tokenizer.decode(sample.tokens), tokenizer.decode(sample.tokens[sample.loss_mask])


def by_hand(text: str) -> list[int]:
    """Ids of the byte tokenizer: bytes, but for these words."""
    words = {"<tool_response>": 272, "</tool_response>": 273, "<think>": 274, "</think>": 275}
    parts = re.split("(" + "|".join(words) + ")", text)
    return [i for part in parts for i in ([words[part]] if part in words else part.encode())]


# --- the default mask ---


def test_loss_covers_the_turn_and_its_end_token_and_nothing_else():
    tokenizer = byte_tokenizer()
    ((sample,), rejected) = render(chat("Hi", "Yo"), tokenizer, max_length=200)
    assert rejected == []
    # By hand: bytes of the text, with <|im_start|> = 257, <|im_end|> = 258, <think> = 274, </think> = 275.
    given = [257, *b"user\nHi", 258, *b"\n", 257, *b"assistant\n"]
    turn = [274, *b"\n\n", 275, *b"\n\nYo", 258]
    assert sample.tokens.tolist() == [*given, *turn, *b"\n"]
    assert sample.loss_mask.tolist() == [False] * len(given) + [True] * len(turn) + [False]
    np.testing.assert_array_equal(sample.denominator_mask, sample.loss_mask)
    assert (sample.tokens.dtype, sample.loss_mask.dtype) == (np.int32, bool)


def test_each_assistant_turn_is_a_sample_with_loss_on_the_final_one():
    tokenizer = byte_tokenizer()
    record = chat(
        "one", "<think>\nhm\n</think>\n\nuno", "two", "<think>\nso\n</think>\n\ndos", "three", "tres"
    )
    samples, rejected = render(record, tokenizer, max_length=500)
    assert rejected == []
    assert [texts(sample, tokenizer)[1] for sample in samples] == [
        f"<think>\nhm\n</think>\n\nuno{END}",
        f"<think>\nso\n</think>\n\ndos{END}",
        f"<think>\n\n</think>\n\ntres{END}",
    ]
    # Thinking is gone from the history, as the template has it at inference.
    assert texts(samples[2], tokenizer)[0].count("<think>") == 1
    assert "uno" in texts(samples[2], tokenizer)[0]


def test_a_record_of_last_turns_gives_one_sample():
    samples, _ = render(chat("a", "b", "c", "d", loss_turns="last"), byte_tokenizer(), max_length=200)
    assert [texts(sample, byte_tokenizer())[1] for sample in samples] == [f"<think>\n\n</think>\n\nd{END}"]


def test_turns_that_follow_tool_results_keep_the_thinking_of_the_same_question():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "reasoning_content": "look",
         "tool_calls": [{"function": {"name": "ls", "arguments": '{"d": "/"}'}}]},
        {"role": "tool", "content": "a.txt"},
        {"role": "assistant", "content": "One file.", "reasoning_content": "done"},
    ]  # fmt: skip
    (record,) = parse_record({"messages": messages, "tools": json.dumps([TOOL])}, origin="x:1")
    ((sample,), rejected) = render(record, byte_tokenizer(), max_length=2000)
    assert rejected == []
    call = '<tool_call>\n{"name": "ls", "arguments": {"d": "/"}}\n</tool_call>'
    whole, learned = texts(sample, byte_tokenizer())
    # The template renders both turns alike alone and together: one sample, in which each is learned once.
    assert sample.turns == 2
    assert learned == f"<think>\nlook\n</think>\n\n{call}{END}<think>\ndone\n</think>\n\nOne file.{END}"
    assert whole.startswith("<|im_start|>system\nS\n\nTools:\n" + json.dumps(TOOL))
    assert "look" in whole


words = st.text(alphabet="ab \n.<>|é中", min_size=1, max_size=12).filter(str.strip)


@given(st.lists(words, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
@settings(max_examples=60, deadline=None)
def test_prompt_ids_are_what_inference_sends_and_the_rest_is_the_turn(turns):
    tokenizer = byte_tokenizer()
    record = chat(*turns)
    samples, rejected = render(record, tokenizer, max_length=4000)
    assert len(samples) + len(rejected) == len(turns) // 2
    assert rejected == []
    for i, sample in enumerate(samples):
        messages = list(record.messages[: 2 * i + 2])
        ask = {"tokenize": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **ask)
        assert sample.tokens[: len(prompt)].tolist() == prompt
        assert not sample.loss_mask[: len(prompt)].any()
        content = messages[-1]["content"].lstrip("\n")
        assert texts(sample, tokenizer)[1] == f"<think>\n\n</think>\n\n{content}{END}"
        assert texts(sample, tokenizer)[0] == tokenizer.apply_chat_template(messages, tokenize=False)


def test_the_mask_equals_transformers_own_where_a_template_marks_its_generation():
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = qwen_tokenizer(marked)
    record = chat("What's in /tmp? Numbers: 1234", "I'll look: [ls(path='/tmp')]\n\n42 files.")
    ((sample,), _) = render(record, tokenizer, max_length=200)
    theirs = tokenizer.apply_chat_template(
        list(record.messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert sample.tokens.tolist() == theirs["input_ids"]
    assert sample.loss_mask.astype(int).tolist() == list(theirs["assistant_masks"])
    assert sample.loss_mask.sum() > 10


def test_the_end_token_is_learned_even_when_padding_is_the_same_token():
    tokenizer = byte_tokenizer.__wrapped__()  # its own, not the cached one
    tokenizer.pad_token = tokenizer.eos_token
    ((sample,), _) = render(chat("a", "b"), tokenizer, max_length=100)
    assert sample.tokens[sample.loss_mask][-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_a_base_model_whose_eos_is_not_the_templates_learns_the_templates():
    tokenizer = byte_tokenizer(eos="<|endoftext|>")
    assert end_of_turn_ids(tokenizer) == {256, 258}
    ((sample,), _) = render(chat("a", "b"), tokenizer, max_length=100)
    assert texts(sample, tokenizer)[1].endswith(f"b{END}")
    rejected = render(chat("a", "b<|endoftext|>"), tokenizer, max_length=100).rejected
    assert rejected == ["an end-of-turn token inside the turn's content"]


# --- what gives no sample ---


@pytest.mark.parametrize(
    ("record", "template", "reason"),
    [
        (chat("a", f"b{END}c"), TEMPLATE, "an end-of-turn token inside the turn's content"),
        (chat("a", "b"), "{{ raise_exception('roles must\n alternate') }}", "chat template failed: roles must"),
        (chat("a", "b"), "{{ messages[1].nothing.at.all }}", "chat template failed: "),
        (chat("a", "b"), "{{ messages | length }}<|im_end|>", "template not prefix-stable"),
        (chat("a", "b"), "{% for m in messages %}{{ m.content }}{% endfor %}", "no end-of-turn token after the turn"),
        (chat("a", "b"), "{{ messages[0].content }}<|im_end|>", "no end-of-turn token after the turn"),
        (chat("a", "b"), "x{% if messages | length > 1 %}<|im_end|>{% endif %}", "the template renders the turn as nothing"),
    ],
)  # fmt: skip
def test_a_turn_without_a_sample_has_a_reason(record, template, reason):
    samples, rejected = render(record, byte_tokenizer(template), max_length=200)
    assert samples == []
    assert len(rejected) == 1
    assert rejected[0].startswith(reason)
    assert "\n" not in rejected[0]


def test_a_sample_longer_than_max_length_is_counted_and_one_of_that_length_is_kept():
    for mask in ("last_turn", "release"):
        ((sample,), _) = render(chat("Hi", "Yo"), byte_tokenizer(), mask=mask, max_length=500)
        exactly = len(sample.tokens)
        assert len(render(chat("Hi", "Yo"), byte_tokenizer(), mask=mask, max_length=exactly).samples) == 1
        shorter = render(chat("Hi", "Yo"), byte_tokenizer(), mask=mask, max_length=exactly - 1)
        assert shorter == ([], [f"longer than {exactly - 1} tokens"])


def test_a_tokenizer_that_cannot_render_is_an_error_of_one_line():
    with pytest.raises(UserError, match=r"has no chat template; add a chat_template.jinja"):
        render(chat("a", "b"), byte_tokenizer(None), max_length=100)
    with pytest.raises(UserError, match="mask must be one of last_turn, release, not 'all'"):
        # Past the run-time type check that the tests put around every function and a user does not have.
        inspect.unwrap(render_batch)([chat("a", "b")], byte_tokenizer(), mask="all", max_length=100)
    unknown = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    plain = PreTrainedTokenizerFast(tokenizer_object=unknown, unk_token="[UNK]")
    with pytest.raises(UserError, match=r"this tokenizer has no token <\|im_start\|>; use mask=last_turn"):
        render(chat("a", "b"), plain, mask="release", max_length=100)


# --- the release's mask ---


def release_table(*rows: tuple[str, str, bool, bool]) -> tuple[list[int], list[bool], list[bool]]:
    """ids, labels and weights as the release's trainer makes them: rows of (role, content, content has loss, is counted)."""
    ids, loss, count = [], [], []
    for role, content, learned, counted in rows:
        body = by_hand(content)
        header = [*role.encode(), 10]
        ids += [257, *header, *body, 258, 10]
        loss += [True, *[False] * len(header), *[learned] * len(body), True, True]
        count += [True, *[False] * len(header), *[counted] * len(body), True, True]
    loss[0] = count[0] = False
    return ids, loss, count


def test_the_release_mask_has_loss_on_delimiters_and_counts_masked_assistant_tokens():
    messages = (
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "<think>\nplan\n</think>\n\na1"},
        {"role": "tool", "content": "r1"},
        {"role": "tool", "content": "r2"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\na2"},
    )
    record = Record(messages, None, "c", "x:1", "last")
    ((sample,), rejected) = render(record, byte_tokenizer(None), mask="release", max_length=500)
    assert rejected == []
    results = "\n".join(f"<tool_response>\n{r}\n</tool_response>" for r in ("r1", "r2"))
    ids, loss, count = release_table(
        ("system", "sys", False, False),
        ("user", "q1", False, False),
        ("assistant", "a1", False, True),  # without its thinking
        ("user", results, False, False),
        ("assistant", "<think>\nso\n</think>\n\na2", True, True),
    )
    assert sample.tokens.tolist() == ids
    assert sample.loss_mask.tolist() == loss
    assert sample.denominator_mask.tolist() == count
    assert sum(count) == sum(loss) + len("a1")


def test_the_release_mask_writes_tools_calls_and_thinking_into_the_text():
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "ls", "arguments": {"d": "/", "n": 1}}]},
        {"role": "tool", "content": "[]"},
        {"role": "assistant", "content": "Nothing.", "reasoning_content": "empty"},
    ]
    (record,) = parse_record({"messages": messages, "tools": [TOOL]}, origin="x:1")
    samples, rejected = render(record, byte_tokenizer(None), mask="release", max_length=1000)
    assert rejected == []
    assert [len(sample.tokens) for sample in samples] == sorted(len(sample.tokens) for sample in samples)
    text = texts(samples[1], byte_tokenizer())[0]
    assert text == (
        f"<|im_start|>system\n<tools>\n{json.dumps(TOOL)}\n</tools>{END}\n<|im_start|>user\nq{END}\n"
        f'<|im_start|>assistant\n[ls(d="/", n=1)]{END}\n<|im_start|>user\n<tool_response>\n[]\n</tool_response>{END}\n'
        f"<|im_start|>assistant\n<think>\nempty\n</think>\n\nNothing.{END}\n"
    )


def test_the_release_mask_turns_away_control_tokens_inside_the_learned_turn():
    samples, rejected = render(chat("a", f"b{END}"), byte_tokenizer(), mask="release", max_length=100)
    assert (samples, rejected) == ([], ["an end-of-turn token inside the turn's content"])


# --- stores and reports ---


def test_a_store_gives_back_every_sample(tmp_path):
    records = [chat("x" * n, "y" * (n % 5 + 1), "z", "w") for n in range(1, 14)]
    singles = [
        s
        for record in records
        for s in render(record, byte_tokenizer(), mask="release", max_length=300).samples
    ]
    store, report = samples_from_records(
        records, byte_tokenizer(), mask="release", max_length=300, progress=False
    )
    assert len(store) == len(singles) == report.samples == 26
    for i, sample in enumerate(singles):
        for field in ("tokens", "loss_mask", "denominator_mask"):
            np.testing.assert_array_equal(getattr(store[i], field), getattr(sample, field))
        assert (store[i].origin, store[i].category) == (sample.origin, sample.category)
    assert report.loss_tokens == sum(int(s.loss_mask.sum()) for s in singles)
    assert (
        report.denominator_tokens == sum(int(s.denominator_mask.sum()) for s in singles) > report.loss_tokens
    )
    np.testing.assert_array_equal(store.lengths, [len(s.tokens) for s in singles])
    with pytest.raises(IndexError):
        store[26]


def test_the_report_shows_what_trains_and_what_does_not_by_reason(tmp_path):
    path = tmp_path / "mixed.jsonl"
    rows = [
        {"messages": list(chat("a", "b").messages), "category": "one"},
        {"messages": list(chat("a" * 500, "b").messages), "category": "one"},
        {"messages": list(chat("a", "b", "c", f"d{END}e").messages), "category": "two"},
        {"messages": []},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, report = load_samples(path, byte_tokenizer(), max_length=300)
    assert (report.records, report.samples, len(store)) == (3, 2, 2)
    assert str(report).splitlines() == [
        "records              3   rejected 1",
        f"samples              2   4 turns, 2 learned, 2 rejected   {report.tokens / 2:,.0f} tokens each",
        f"tokens    {report.tokens:>12,}   with loss {report.loss_tokens}",
        "category  one 1, two 1",
        f"rejected records: 1 x empty messages (first: {path}:4)",
        f"rejected turns: 1 x an end-of-turn token inside the turn's content (first: {path}:3)",
        f"rejected turns: 1 x longer than 300 tokens (first: {path}:2)",
    ]
    with pytest.raises(UserError, match=rf"{path}:4: empty messages"):
        load_samples(path, byte_tokenizer(), max_length=300, strict=True)
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match=rf"{path}:1: longer than 300 tokens"):
        load_samples(path, byte_tokenizer(), max_length=300, strict=True)
    with pytest.raises(UserError, match=r"^no sample to train on: 1 x longer than 300 tokens"):
        load_samples(path, byte_tokenizer(), max_length=300)


def test_reading_and_rendering_need_no_grain():
    code = "import sys, dcore_jax.data; sys.exit('grain' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_worked_examples_in_the_documentation_hold():
    page = Path(__file__).parents[1] / "docs" / "data.md"
    outcome = doctest.testfile(str(page), module_relative=False, globs={"tokenizer": byte_tokenizer()})
    assert outcome.attempted > 5
    assert outcome.failed == 0


# --- the real vocabulary ---


def test_the_converted_qwen_vocabulary_tokenises_as_tiktoken_does():
    tokenizer = qwen_tokenizer()
    assert len(ranks()) == 151_643
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == list(range(151_643, 151_643 + len(SPECIALS)))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151_645, 151_643)
    texts = [
        "Hello, world! It's 2026-11-21; prices: $1,234.56 (3%).",
        "def f(x):\n    return {'a': [1, 2, 3]}  # ok\n\n\n\tindented\r\n",
        "Füße, naïve, 中文字符, にほん, العربية, 🙂🙃 and e\u0301 combining",
        "   leading and trailing   \n \n x",
        (Path(__file__).parents[1] / "LICENSE").read_text(),
    ]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        text = unicodedata.normalize("NFC", text)  # as the released tokenizer does
        assert ids == _tiktoken().encode_ordinary(text)
        assert tokenizer.decode(ids) == text


def holds_no_added_token(text):
    """Such a token is one id here and ordinary text to tiktoken; Hypothesis tries the constants of our source too."""
    return not any(token in text for token in (*SPECIALS, *ALL_WORDS))


@given(st.text(max_size=40).filter(holds_no_added_token))
@settings(max_examples=100, deadline=None)
def test_the_converted_vocabulary_agrees_with_tiktoken_on_any_text(text):
    ids = qwen_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert ids == _tiktoken().encode_ordinary(unicodedata.normalize("NFC", text))


@cache
def _tiktoken() -> tiktoken.Encoding:
    return tiktoken.Encoding("qwen", pat_str=SPLIT, mergeable_ranks=ranks(), special_tokens={})


def test_real_toolrl_records_teach_their_output_under_both_masks(real_data):
    path = real_data / "toolrl" / "rlla_sft.json"
    records, outputs = (
        read_records(path)[0][::9],
        [row["output"] for row in json.loads(path.read_text())][::9],
    )
    store, report = samples_from_records(records, qwen_tokenizer(), max_length=4096, progress=False)
    release, _ = samples_from_records(records[:9], qwen_tokenizer(), mask="release", max_length=4096)
    assert (report.samples, report.rejected_turns.total) == (len(records), 0)
    for i, output in enumerate(outputs):
        thought, answer = output.split("</think>", 1)
        turn = texts(store[i], qwen_tokenizer())[1]
        assert turn.startswith("<think>\n" + thought.removeprefix("<think>").strip("\n"))
        assert turn.endswith(answer.strip() + END)
    for i in range(len(release)):
        assert texts(release[i], qwen_tokenizer())[1].endswith(outputs[i] + END + "\n")


def test_the_tool_worlds_records_render_with_the_nano_tokenizer(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    tasks = generate_tasks(12, seed=0)
    records = [r for task in tasks for r in parse_record(to_record(task), origin=task.id)]
    for mask in ("last_turn", "release"):
        store, report = samples_from_records(records, tokenizer, mask=mask, max_length=4096, progress=False)
        assert report.rejected_turns.total == 0
        assert len(store) == sum(m["role"] == "assistant" for r in records for m in r.messages)
