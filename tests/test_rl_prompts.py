"""Prompts of an RL run: every form of row, every reason for leaving one out, and the order in which they are drawn."""

import json
from collections import Counter

import pytest

from dcore_jax.calls import Call
from dcore_jax.data import Rejections
from dcore_jax.errors import UserError
from dcore_jax.nano import build_tokenizer
from dcore_jax.rl.prompts import prompt_order, read_questions, render_prompts, toolworld_questions
from dcore_jax.toolworld import generate_tasks, to_record

USER = {"role": "user", "content": "what is the weather in Oslo"}
WEATHER = {"name": "weather", "arguments": {"city": "Oslo"}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def read(tmp_path, *rows, call_format="python", strict=False):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_questions([path], call_format, strict=strict)


def test_a_chat_row_with_a_reference_is_a_prompt(tmp_path):
    row = {"messages": [USER], "reference": [WEATHER], "category": "one", "expects_reply": True}
    (question,), rejected = read(tmp_path, row)
    assert question.messages == (USER,)
    assert question.reference == (Call("weather", {"city": "Oslo"}),)
    assert (question.category, question.expects_reply) == ("one", True)
    assert question.origin.endswith("rows.jsonl:1")
    assert rejected.total == 0


def test_an_empty_reference_means_that_no_call_is_expected(tmp_path):
    (question,), _ = read(tmp_path, {"messages": [USER], "reference": []})
    assert question.reference == ()
    assert question.expects_reply is None


def test_a_conversation_gives_a_prompt_for_each_turn_that_calls_and_counts_the_others(tmp_path):
    messages = [
        USER,
        {"role": "assistant", "content": '<think>\nlook\n</think>\n\n[weather(city="Oslo")]'},
        {"role": "tool", "content": '{"sky": "clear"}'},
        {"role": "assistant", "content": "It is clear."},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "You are welcome."},
    ]
    questions, rejected = read(tmp_path, {"messages": messages})
    assert [len(q.messages) for q in questions] == [1, 5]
    assert [len(q.reference) for q in questions] == [1, 0]
    assert rejected.counts == {"a report on tool results, which makes no call (`--reports` takes it)": 1}

    path = tmp_path / "whole.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    questions, rejected = read_questions([path], "python", reports=True)
    assert [(q.category, len(q.messages), len(q.reference)) for q in questions][1] == ("report", 3, 0)
    assert not rejected.counts and questions[1].expects_reply


def test_every_turn_of_a_tool_world_task_is_a_prompt_where_reports_are_asked_for():
    for task in generate_tasks(12, seed=0):
        turns = sum(message["role"] == "assistant" for message in to_record(task)["messages"])
        with_reports = toolworld_questions([task], "python", reports=True)
        assert len(with_reports) == turns
        reports = [q for q in with_reports if q.category == "report"]
        assert (
            len(reports) == (task.kind != "irrelevant") == turns - len(toolworld_questions([task], "python"))
        )
        assert all(q.reference == () for q in reports)


def test_calls_of_an_openai_conversation_are_read_from_tool_calls(tmp_path):
    turn = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {**WEATHER, "arguments": '{"city": "Oslo"}'}}],
    }
    (question,), _ = read(tmp_path, {"messages": [USER, turn]})
    assert question.reference == (Call("weather", {"city": "Oslo"}),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "invalid JSON"),
        ([1], "a record must be a JSON object, not list"),
        ({"messages": [USER], "reference": "weather"}, "reference is a string that is not JSON"),
        ({"messages": [USER], "reference": [{"name": ""}]}, "a tool call without a name"),
        ({"messages": [], "reference": []}, "empty messages"),
        (
            {"messages": [USER, {"role": "assistant", "content": "hi"}], "reference": []},
            "messages that do not wait for the assistant",
        ),
        ({"messages": "hi", "reference": []}, "messages is a string that is not JSON"),
        ({"messages": [USER], "reference": [], "expects_reply": 1}, "expects_reply must be true or false"),
        ({"prompt": [USER], "reward_model": {}}, "reward_model.ground_truth is missing"),
        (
            {"prompt": [USER], "reward_model": {"ground_truth": "<think> a </think>\n<tool_call>\n{\n</tool_call>"}},
            "a ground truth that cannot be read: ",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "[weather(]"}]}, "a reference turn that cannot be read"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "an assistant turn before any request"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_counted_by_reason_and_strict_names_it(tmp_path, row, reason):
    good = {"messages": [USER], "reference": []}
    questions, rejected = read(tmp_path, good, row)
    assert len(questions) == 1
    assert [name.startswith(reason) for name in rejected.counts] == [True]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: "):
        read(tmp_path, good, row, strict=True)


def test_every_real_rl_prompt_is_read_with_its_calls(real_data):
    questions, rejected = read_questions([real_data / "toolrl" / "rlla_test.parquet"], "tags")
    assert len(questions) + rejected.total == 80
    assert sum(bool(q.reference) for q in questions) == 71
    assert all(q.expects_reply == (not q.reference) for q in questions)


def test_toolworld_prompts_hold_exactly_the_calls_of_each_turn():
    tasks = generate_tasks(60, seed=1, subtasks=(1, 3))
    by_task = {task.id: Counter() for task in tasks}
    questions = toolworld_questions(tasks, "python")
    for question in questions:
        by_task[question.origin].update(call.name for call in question.reference)
        assert question.messages[-1]["role"] in ("user", "tool")
    assert {task.id: Counter(call.name for call in task.reference) for task in tasks} == by_task
    kinds = Counter(question.category.split()[0] for question in questions)
    assert set(kinds) == {"single", "sequential", "parallel", "irrelevant"}
    assert kinds["sequential"] > sum(task.kind == "sequential" for task in tasks)  # one prompt a turn


def test_a_prompt_ends_where_the_assistant_begins_and_a_long_one_is_counted(tokenizer):
    questions = toolworld_questions(generate_tasks(8, seed=0), "python")
    rejections = Rejections()
    prompts = render_prompts(questions, tokenizer, max_length=10_000, rejections=rejections)
    assert len(prompts) == len(questions)
    for prompt in prompts:
        assert prompt.text.endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(prompt.ids) == prompt.text
        assert prompt.opening == ""
    longest = max(len(prompt.ids) for prompt in prompts)
    shorter = render_prompts(questions, tokenizer, max_length=longest - 1, rejections=rejections)
    assert 0 < len(shorter) == len(prompts) - rejections.counts[f"a prompt longer than {longest - 1} tokens"]


def test_a_thought_that_the_template_opens_belongs_to_the_response(tokenizer):
    questions = toolworld_questions(generate_tasks(1, seed=0), "python")
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = before + "{%- if add_generation_prompt -%}{{- '<think>\n' -}}{%- endif -%}"
        prompts = render_prompts(questions, tokenizer, max_length=10_000, rejections=Rejections())
    finally:
        tokenizer.chat_template = before
    assert {prompt.opening for prompt in prompts} == {"<think>\n"}


def test_every_epoch_draws_each_prompt_once_in_another_order():
    drawn = prompt_order(7, 3, range(21))
    epochs = [drawn[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert prompt_order(7, 3, range(5, 9)) == drawn[5:9]
    assert prompt_order(7, 4, range(21)) != drawn


QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OSLO = (Call("weather", {"city": "Oslo"}),)


@pytest.mark.parametrize(
    ("truth", "calls", "notation"),
    [
        ('[{"name": "weather", "arguments": {"city": "Oslo"}}]', OSLO, "qwen"),
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', OSLO, "qwen"),
        ([{"name": "weather", "parameters": {"city": "Oslo"}}], OSLO, "qwen"),
        (['[weather(city="Oslo")]'], OSLO, "python"),
        ('[weather(city="Oslo")]', OSLO, "python"),
        ("[]", (), "python"),
        ([], (), "qwen"),
        (f"<think>\nlook\n</think>\n\n{QWEN_CALL}", OSLO, "qwen"),
        (
            '<think> a </think>\n<tool_call>\n{"name": "weather", "parameters": {"city": "Oslo"}}\n</tool_call>',
            OSLO,
            "tags",
        ),
        ("<think> a </think>\n<response> Which town? </response>", (), "tags"),
        ("No tool tells the time.", (), "qwen"),
        ("72", None, None),
        ("[weather(", None, None),
        ("<think> a", None, None),
        ([1], None, None),
    ],
)
def test_a_ground_truth_is_read_in_the_notation_of_its_row(tmp_path, truth, calls, notation):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": [USER], "reward_model": {"ground_truth": truth}}]))
    questions, rejected = read_questions([path], "qwen")
    if calls is None:
        assert not questions and rejected.total == 1
        assert next(iter(rejected.counts)).startswith("a ground truth")
    else:
        assert (questions[0].reference, questions[0].call_format) == (calls, notation)


def test_tools_that_go_to_the_template_are_called_in_its_notation_and_own_instructions_in_theirs(tmp_path):
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    turn = {"role": "assistant", "content": '[weather(city="Oslo")]'}
    asked = {
        "role": "system",
        "content": 'Tools: {"name": "weather"}. Answer as [func_name(params_name=value)].',
    }
    refuses = {"role": "assistant", "content": "No tool does that."}
    rows = [
        {"messages": [USER, turn], "tools": [tool]},
        {"messages": [asked, USER, turn]},
        {"messages": [asked, USER, refuses]},
        {"messages": [asked, USER, turn], "tools": [tool]},  # described once, in the system turn
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": WEATHER}]}], "tools": [tool]},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    questions, rejected = read_questions([path], "qwen")
    assert [question.call_format for question in questions] == ["qwen", "python", "python", "python", "qwen"]
    assert [bool(question.tools) for question in questions] == [True, False, False, False, True]
    assert not rejected.total


def test_a_turn_that_attempts_a_call_is_never_a_prompt_without_calls(tmp_path):
    attempts = [
        QWEN_CALL[:-12],
        "[weather(city=",
        "<function=weather>{}</function>",
        f"{QWEN_CALL} {{",
        '{"name": "weather", "arguments": {',
    ]
    rows = [{"messages": [USER, {"role": "assistant", "content": text}]} for text in attempts]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    questions, rejected = read_questions([path], "python")
    assert all(question.reference for question in questions)
    assert len(questions) + rejected.total == len(rows)
