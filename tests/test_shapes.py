"""Every shape of docs/data.md, in all three recipes: what is learned, what RL asks for, which seeds it makes, what is counted."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcore_jax.calls import Call
from dcore_jax.data import Malformed, Rejections, parse_record, read_records, render
from dcore_jax.data.notation import template_notation
from dcore_jax.distill.seeds import parse_seed, read_seeds
from dcore_jax.rewards import open_rewards
from dcore_jax.rl.playback import reachable_prompts
from dcore_jax.rl.prompts import Question, questions_of, read_questions, render_prompts
from qwen_tokenizer import byte_tokenizer
from shapes import (
    ANSWER,
    ARGUMENTS,
    ASKED,
    BARE_TOOL,
    CALL,
    JSON,
    QWEN,
    RESULT,
    SHAPES,
    TIDES,
    TOLD,
    TOOL,
    USER,
)

# Contents alone: a template that has no place for calls, thoughts or tools.
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
EVERY = pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learned(records, tokenizer):
    """(texts of the learned turns, reasons of the others) of records."""
    texts, reasons = [], []
    for record in records:
        samples, rejected = render(record, tokenizer, max_length=10_000)
        reasons += rejected
        for sample in samples:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.loss_mask.astype(int), [0]])))
            texts += [
                tokenizer.decode(sample.tokens[start:end]) for start, end in zip(edges[::2], edges[1::2])
            ]
            assert len(edges) == 2 * sample.turns
    return tuple(texts), tuple(reasons)


def asked(row):
    found = list(questions_of(row, "here:1", "rows", "qwen"))
    return [q for q in found if isinstance(q, Question)], tuple(q for q in found if isinstance(q, str))


def seeds(row):
    found = list(parse_seed("jsonl", row, "here:1"))
    kinds = tuple(sample.kind for sample in found if not isinstance(sample, Malformed))
    return kinds, tuple(str(reason) for reason in found if isinstance(reason, Malformed))


def assistant_turns(record):
    turns = sum(message["role"] == "assistant" for message in record.messages)
    return min(turns, 1) if record.loss_turns == "last" else turns


def test_there_are_more_than_twenty_shapes_of_different_names():
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) > 20
    assert template_notation(byte_tokenizer()) == "qwen"  # what the table calls the template's


@EVERY
def test_every_turn_of_a_shape_is_learned_or_counted(shape, tmp_path):
    records, rejections = read_records(write(tmp_path / "rows.jsonl", shape.row))
    assert len(records) == shape.records
    assert rejections.counts == ({shape.refused: 1} if shape.refused else {})
    assert learned(records, byte_tokenizer()) == (shape.learned, ())
    assert learned(records, byte_tokenizer(PLAIN)) == (shape.plain_learned, shape.plain_left_out)
    turns = sum(map(assistant_turns, records))
    assert turns == len(shape.learned) == len(shape.plain_learned) + len(shape.plain_left_out)


@EVERY
def test_a_shape_asks_for_its_calls_in_its_notation(shape, tmp_path):
    questions, rejections = read_questions([write(tmp_path / "rows.jsonl", shape.row)], "qwen")
    found = tuple(
        (tuple((call.name, dict(call.arguments)) for call in q.reference), q.call_format) for q in questions
    )
    assert found == shape.prompts
    assert rejections.counts == dict(Counter(shape.prompts_left_out))
    if not shape.refused:
        turns = sum(map(assistant_turns, parse_record(shape.row, origin="here:1")))
        assert turns == len(found) + len(shape.prompts_left_out)


@EVERY
def test_a_perfect_answer_to_each_prompt_of_a_shape_earns_the_top(shape):
    rejections, reward = Rejections(), open_rewards(["dcore_paper"])
    questions, _ = asked(shape.row)
    prompts = render_prompts(questions, byte_tokenizer(), max_length=10_000, rejections=rejections)
    assert len(reachable_prompts(prompts, byte_tokenizer(), reward, rejections)) == len(shape.prompts)
    assert not rejections.counts


@EVERY
def test_a_shape_makes_seeds_of_its_turns(shape, tmp_path):
    found, rejections = read_seeds([str(write(tmp_path / "rows.jsonl", shape.row))])
    assert tuple(sample.kind for sample in found) == shape.seeds
    assert rejections.counts == dict(Counter(shape.seeds_left_out))
    assert all([tool["function"]["name"] for tool in sample.tools] == ["tide"] for sample in found)


def test_one_file_may_mix_every_shape(tmp_path):
    path = write(tmp_path / "mix.jsonl", *(shape.row for shape in SHAPES))
    records, rejections = read_records(path)
    assert len(records) == sum(shape.records for shape in SHAPES)
    assert rejections.total == sum(bool(shape.refused) for shape in SHAPES)
    questions, _ = read_questions([path], "qwen")
    assert sum(bool(q.reference) for q in questions) == sum(
        bool(calls) for shape in SHAPES for calls, _ in shape.prompts
    )


def test_tools_that_stand_in_a_system_text_are_no_part_of_a_seeds_policy():
    row = next(shape.row for shape in SHAPES if shape.name == "Hermes")
    first, _ = parse_seed("jsonl", row, "here:1")
    assert first.policy == "You call functions." and first.tools[0]["function"]["name"] == "tide"


# --- Parquet ---


ARROW_CALL = {**CALL, "function": {"name": "tide", "arguments": json.dumps(ARGUMENTS)}}


def test_an_arrow_struct_is_read_as_the_json_that_it_was(tmp_path):
    """Every message has every field there; those that a row does not have are null."""
    chat = {
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [ARROW_CALL]},
            {**RESULT, "tool_call_id": "c1"},
            ANSWER,
        ],
        "tools": json.dumps([TOOL]),
    }
    prompt = {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "[tide(harbour='Ostend')]"}}
    query = {"query": ASKED, "answers": f"[{JSON}]", "tools": json.dumps([TOOL])}
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.Table.from_pylist(
            [{**dict.fromkeys({**chat, **prompt, **query}), **row} for row in (chat, prompt, query)]
        ),
        path,
    )
    written = pq.read_table(path).to_pylist()
    assert written[0]["messages"][0]["tool_calls"] is None and written[1]["messages"] is None

    records, rejections = read_records(path)
    assert rejections.total == 1  # the RL prompt
    (from_json,) = parse_record(chat, origin="here:1")
    tokenizer = byte_tokenizer()
    assert learned(records[:1], tokenizer) == learned([from_json], tokenizer)
    questions, rejections = read_questions([path], "qwen")
    assert [(q.reference, q.call_format) for q in questions] == [
        ((Call("tide", ARGUMENTS),), notation) for notation in ("qwen", "python", "qwen")
    ]
    found, _ = read_seeds([str(path)])
    assert [sample.kind for sample in found] == ["sequential", "report", "sequential"]


NULL_DAY = {"name": "tide", "arguments": {"harbour": "Veere", "day": None}}
REQUIRED_DAY = {"name": "tide", "parameters": {"harbour": {"type": "str"}, "day": {"type": "str"}}}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [{"role": "tool", "content": {"high": "14:20", "low": None}}]}, "content"),
        ({"messages": [{"role": "assistant", "tool_calls": [NULL_DAY]}]}, "arguments"),
        ({"messages": [{"role": "assistant", "function_call": NULL_DAY}]}, "arguments"),
        ({"messages": [{"role": "user", "content": ASKED}], "reference": [NULL_DAY]}, "arguments"),
        ({"prompt": ASKED, "reward_model": {"ground_truth": [NULL_DAY]}}, "arguments"),
        ({"prompt": ASKED, "completion": [{"role": "assistant", "tool_calls": [NULL_DAY]}]}, "arguments"),
        ({"query": ASKED, "answers": [NULL_DAY]}, "arguments"),
        ({"query": ASKED, "answers": [NULL_DAY], "tools": json.dumps([REQUIRED_DAY])}, "arguments"),
    ],
)
def test_a_null_in_an_arrow_struct_of_data_is_counted(tmp_path, row, kind):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    for rejections in (read_records(path)[1], read_questions([path], "qwen")[1], read_seeds([str(path)])[1]):
        (reason,) = rejections.counts
        assert reason.startswith(f"nulls inside a Parquet struct of {kind}: ")


def test_a_null_that_the_tool_decides_is_absent(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"query": ASKED, "answers": [NULL_DAY], "tools": json.dumps([TOOL])}]), path
    )
    (record,), _ = read_records(path)
    assert record.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"harbour": "Veere"}
    ((question,), _), ((seed,), _) = read_questions([path], "qwen"), read_seeds([str(path)])
    assert question.reference == seed.reference == (Call("tide", {"harbour": "Veere"}),)


# --- what else people bring ---


def chat(*turns, **fields):
    return {"messages": [USER, *turns], "tools": [TOOL], **fields}


def assistant(content="", **fields):
    return {"role": "assistant", "content": content, **fields}


CALLING = assistant(tool_calls=[CALL])
ONE = chat(CALLING)


@pytest.mark.parametrize(
    "row",
    [
        {**ONE, "messages": json.dumps(ONE["messages"])},
        {**ONE, "tools": json.dumps([TOOL])},
        {**ONE, "tools": json.dumps(json.dumps([TOOL]))},
        {**ONE, "tools": [json.dumps(TOOL)]},
        {**ONE, "tools": TOOL},
        {**ONE, "tools": BARE_TOOL},
        {"messages": [{**USER, "tools": [TOOL]}, CALLING]},
        {"messages": [{**USER, "tools": json.dumps([TOOL])}, CALLING], "tools": None},
        {"messages": [{**USER, "tools": None}, CALLING], "functions": [BARE_TOOL]},
        chat(assistant(tool_calls=json.dumps([CALL]))),
        chat(assistant(tool_calls=[json.dumps(CALL)])),
        chat(assistant(tool_calls=CALL)),
        chat(assistant(tool_calls=[JSON])),
        chat(assistant(function_call=JSON)),
        chat(
            assistant(
                tool_calls=[{"function": {"name": "tide", "arguments": json.dumps(json.dumps(ARGUMENTS))}}]
            )
        ),
        chat({"role": "assistant", "tool_calls": [CALL]}),
        chat({"from": "function_call", "value": {"name": "tide", "arguments": ARGUMENTS}}),
        chat({"from": "function_call", "value": QWEN}),
        {
            "conversations": json.dumps(
                [{"from": "human", "value": ASKED}, {"from": "function_call", "value": JSON}]
            ),
            "tools": [TOOL],
        },
        {
            "conversations": [{"from": "human", "value": ASKED}],
            "chosen": {"from": "gpt", "value": QWEN},
            "rejected": {"from": "gpt", "value": TOLD},
            "tools": [TOOL],
        },
        {"instruction": ASKED, "chosen": QWEN, "rejected": TOLD, "tools": [TOOL]},
    ],
)
def test_the_same_call_is_read_however_it_is_wrapped(row):
    (record,) = parse_record(row, origin="here:1")
    ((text,), rejected) = learned([record], byte_tokenizer())
    assert QWEN in text and not rejected
    (question,), left_out = asked(row)
    assert question.reference == (Call("tide", ARGUMENTS),) and not left_out
    assert [tool["function"]["name"] for tool in question.tools] == ["tide"]
    assert seeds(row) == (("sequential",), ())


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"high": "14:20"}, TIDES),
        ([{"high": "14:20"}], f"[{TIDES}]"),
        (["Ostend", "Veere"], '["Ostend", "Veere"]'),
        ([], "[]"),
        ({"harbour": "Zürich"}, '{"harbour": "Zürich"}'),
        (14.5, "14.5"),
        (True, "true"),
        ("{'high': None}", "{'high': None}"),  # a text is as it is
        ("", ""),
        ([{"type": "text", "text": "High at "}, {"type": "text", "text": "14:20."}], "High at 14:20."),
    ],
)
@pytest.mark.parametrize(
    "role", [("role", "content", "tool"), ("role", "content", "function"), ("from", "value", "observation")]
)
def test_a_tools_result_of_any_json_value_is_written_as_text(result, text, role):
    speaker, key, name = role
    row = chat(CALLING, {speaker: name, key: result, "name": "tide"}, ANSWER)
    (record,) = parse_record(row, origin="here:1")
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == [text]
    assert len(learned([record], byte_tokenizer())[0]) == 2
    assert [q.reference for q in asked(row)[0]] == [(Call("tide", ARGUMENTS),)]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_thought_is_learned_under_whichever_name_it_has(name):
    row = chat(assistant(**{name: "The tide tool knows."}, tool_calls=[CALL]))
    texts, rejected = learned(parse_record(row, origin="here:1"), byte_tokenizer())
    assert texts == (f"<think>\nThe tide tool knows.\n</think>\n\n{QWEN}<|im_end|>",) and not rejected


def test_words_and_calls_of_one_turn_in_messages_of_their_own_are_one_turn():
    spoken = (
        ("human", ASKED),
        ("gpt", "One moment."),
        ("function_call", JSON),
        ("function_call", JSON),
        ("observation", TIDES),
        ("gpt", TOLD),
    )
    row = {"conversations": [{"from": speaker, "value": text} for speaker, text in spoken], "tools": [TOOL]}
    (record,) = parse_record(row, origin="here:1")
    assert [m["role"] for m in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert record.messages[1]["content"] == "One moment." and len(record.messages[1]["tool_calls"]) == 2
    (question,), left_out = asked(row)
    assert len(question.reference) == 2 and question.expects_reply and len(left_out) == 1


def test_a_thought_before_the_calls_of_a_speaker_of_calls_is_kept():
    row = chat({"from": "function_call", "value": f"<think>\nIt knows.\n</think>\n\n{QWEN}"})
    texts, _ = learned(parse_record(row, origin="here:1"), byte_tokenizer())
    assert texts == (f"<think>\nIt knows.\n</think>\n\n{QWEN}<|im_end|>",)


def test_words_before_a_call_are_never_a_prompt_that_expects_no_call():
    row = chat(assistant("One moment."), CALLING, RESULT, ANSWER)
    questions, left_out = asked(row)
    assert [q.reference for q in questions] == [(Call("tide", ARGUMENTS),)]
    assert "words of the assistant before another of its messages" in left_out
    texts, rejected = learned(parse_record(row, origin="here:1"), byte_tokenizer())
    assert len(texts) + len(rejected) == 3


def test_a_greeting_before_any_request_is_counted_and_the_rest_is_read():
    row = {"messages": [assistant("Ahoy!"), USER, CALLING], "tools": [TOOL]}
    texts, rejected = learned(parse_record(row, origin="here:1"), byte_tokenizer())
    assert len(texts) == 1 and QWEN in texts[0]
    assert rejected == ("an assistant turn before any request, for which the template writes no prompt",)
    questions, left_out = asked(row)
    assert len(questions) == 1 and left_out == ("an assistant turn before any request",)
    assert learned(parse_record(row, origin="here:1"), byte_tokenizer(PLAIN))[0] == ("Ahoy!<|im_end|>",)


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat({"role": "user", "content": None}, CALLING), "a user message without content"),
        (chat(CALLING, {"role": "tool", "content": None}, ANSWER), "a tool message without content"),
        (chat(assistant({"harbour": "Ostend"})), "content of an assistant message must be text, not dict"),
        (
            chat(CALLING, {"role": "tool", "content": {"high": float("nan")}}, ANSWER),
            "content of a tool message: a number that is not finite",
        ),
        (
            chat(CALLING, {"role": "tool", "content": {"high": HALF}}, ANSWER),
            "content of a tool message: text with a lone surrogate",
        ),
        (chat(assistant(HALF)), "text with a lone surrogate in an assistant message"),
        (
            chat(assistant(reasoning=HALF, tool_calls=[CALL])),
            "text with a lone surrogate in an assistant message",
        ),
        (chat(assistant(f'[tide(harbour="{HALF}")]')), "text with a lone surrogate in an assistant message"),
        (
            chat(assistant(tool_calls=[{"name": "tide", "arguments": {"harbour": HALF}}])),
            "tool call arguments: text with a lone surrogate",
        ),
        (
            chat(assistant(tool_calls=[{"name": "tide", "arguments": '{"harbour": "\\ud83d"}'}])),
            "tool call arguments: text with a lone surrogate",
        ),
        (
            chat(assistant(tool_calls=[{"name": "tide", "arguments": "{'harbour': 'Ostend'}"}])),
            "tool call arguments is a string that is not JSON",
        ),
        (
            chat(assistant(tool_calls=[{"name": "tide", "arguments": ["Ostend"]}])),
            "tool call arguments must be an object, not list",
        ),
        (chat(assistant(reasoning="a", thinking="b")), "thinking beside another reasoning_content"),
        ({**ONE, "tools": {"tide": BARE_TOOL}}, "tools must be a list, not dict"),
        ({**ONE, "tools": repr([TOOL])}, "tools is a string that is not JSON"),
        (
            {"messages": [{**USER, "tools": [TOOL]}, CALLING], "tools": [{**TOOL, "strict": True}]},
            "tools inside a message beside other tools",
        ),
        ({"prompt": ASKED, "completion": TOLD, "label": False}, "an answer that is marked as a bad one"),
        ({"conversations": [USER, ANSWER], "kto_tag": False}, "an answer that is marked as a bad one"),
        ({"chosen": TOLD, "rejected": "No."}, "a chosen answer without its prompt"),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "a chosen answer without its prompt"),
    ],
)
def test_what_cannot_be_read_is_counted_under_a_reason_in_every_recipe(row, reason):
    with pytest.raises(Malformed) as refused:
        parse_record(row, origin="here:1")
    assert str(refused.value) == reason
    assert asked(row) == ([], (reason,))
    assert seeds(row)[0] == () and len(seeds(row)[1]) == 1


@pytest.mark.parametrize(
    ("truth", "calls"),
    [
        ({"name": "tide", "arguments": ARGUMENTS}, 1),
        ([{"name": "tide", "parameters": ARGUMENTS}], 1),
        ([JSON, JSON], 2),
        (json.dumps([CALL]), 1),
        (json.dumps(JSON), 1),
        (json.dumps("[tide(harbour='Ostend')]"), 1),
        (json.dumps(json.dumps([CALL])), 1),
        (json.dumps("Quoted words."), 0),
        (QWEN, 1),
        ("[]", 0),
        ([], 0),
        ("I cannot look that up.", 0),
        ("72", None),
        ("", None),
        ("[tide(harbour='Ostend'", None),
        ('{"name": "tide", "arguments": {"harbour": ', None),
        ("<tool_call>\n<function=tide>\n</function>\n</tool_call>", None),
    ],
)
def test_a_ground_truth_is_calls_or_a_reply_or_counted(truth, calls):
    questions, left_out = asked({"prompt": [USER], "reward_model": {"ground_truth": truth}, "tools": [TOOL]})
    assert [len(q.reference) for q in questions] == ([] if calls is None else [calls])
    assert len(left_out) == (calls is None)


# --- the page ---


def table_line(shape):
    """The line of docs/data.md, with notations as under Qwen3's template."""
    sft = str(len(shape.learned)) if shape.records else "none"
    sft += f", in {shape.records} records" if shape.records > 1 else ""
    rl = [f"{len(calls)} in `{notation}`" if calls else "no call" for calls, notation in shape.prompts]
    seeds = ", ".join(shape.seeds) or "none"
    return f"| {shape.name} | {shape.fields} | {sft} | {', '.join(rl)} | {seeds} |"


def test_the_page_has_a_line_and_an_example_of_every_shape():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    for shape in SHAPES:
        assert table_line(shape) in page
        assert json.dumps(shape.row, ensure_ascii=False) in page
    assert page.count("\n{") == len(SHAPES)  # and no example of none
