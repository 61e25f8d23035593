"""Readers: every format reads, every broken line is counted under a reason, nothing raises by surprise."""

import contextlib
import json

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.data import Malformed, Record, Rejections, parse_record, read_records
from dcore_jax.errors import UserError

USER = {"role": "user", "content": "List the files."}
ANSWER = {"role": "assistant", "content": "There are none."}
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {}}}}
CHAT = {"messages": [USER, ANSWER], "tools": [TOOL], "category": "files"}
TOOLRL = {
    "instruction": "Be brief.",
    "input": "Hello?",
    "output": "<think> x </think>\n<response> hi </response>",
}
DCORE = {"id": 0, "conversations": [{"role": "system", "content": "S"}, USER, ANSWER]}


def calling(arguments, **outer) -> dict:
    function = {"name": "ls", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**outer, "function": function} if outer else function],
    }


def one(row) -> Record:
    (record,) = parse_record(row, origin="here:1")
    return record


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


# --- formats ---


def test_a_chat_record_keeps_messages_tools_and_category():
    record = one(CHAT)
    assert record == Record((USER, ANSWER), (TOOL,), "files", "here:1", "every")


def test_tools_and_arguments_may_be_json_strings():
    as_text = {"messages": [USER, calling('{"path": "a"}'), ANSWER], "tools": json.dumps([TOOL])}
    as_data = {"messages": [USER, calling({"path": "a"}, type="function", id="c1"), ANSWER], "tools": [TOOL]}
    assert one(as_text).tools == one(as_data).tools == (TOOL,)
    for row, outer in ((as_text, {}), (as_data, {"id": "c1"})):
        message = one(row).messages[1]
        assert message["content"] is None  # as it was: a template may tell null from empty
        assert message["tool_calls"] == [
            {**outer, "type": "function", "function": {"name": "ls", "arguments": {"path": "a"}}}
        ]


def test_a_toolrl_record_is_a_system_a_user_and_an_assistant_turn():
    record = one(TOOLRL)
    assert [(m["role"], m["content"]) for m in record.messages] == [
        ("system", TOOLRL["instruction"]),
        ("user", TOOLRL["input"]),
        ("assistant", TOOLRL["output"]),
    ]
    assert (record.tools, record.loss_turns) == (None, "every")


def test_every_turn_is_learned_but_of_packed_dcore_lines_only_the_last_of_each():
    assert one(DCORE).loss_turns == "every"
    assert one({**DCORE, "single_conv_last_idx": [2]}).loss_turns == "last"
    assert one({**DCORE, "single_conv_last_idx": [2], "loss_turns": "every"}).loss_turns == "every"
    assert one({**CHAT, "loss_turns": "last"}).loss_turns == "last"


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "S"},
        {"messages": [USER, ANSWER], "system": "S"},
    ],
)
def test_a_records_own_system_field_is_its_first_turn(row):
    record = one(row)
    assert [message["role"] for message in record.messages] == ["system", "user", "assistant"]
    assert record.messages[0]["content"] == "S"


def test_dcore_speakers_from_value_mean_the_same_as_roles():
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    row = {
        "conversations": [
            {"from": speakers[m["role"]], "value": m["content"]} for m in DCORE["conversations"]
        ]
    }
    assert one(row).messages == one(DCORE).messages


def test_dcore_messages_keep_tool_calls_thinking_and_ids_as_chat_messages_do():
    turns = [
        USER,
        {**calling('{"path": "a"}', id="c1"), "reasoning_content": "hm"},
        {"role": "tool", "content": "none", "tool_call_id": "c1", "name": "ls"},
        {**ANSWER, "reasoning_content": "so"},
    ]
    record = one({"conversations": turns})
    assert record.messages == one({"messages": turns}).messages
    assert record.messages[1]["tool_calls"][0]["function"] == {"name": "ls", "arguments": {"path": "a"}}
    assert [m.get("reasoning_content") for m in record.messages] == [None, "hm", None, "so"]


def test_a_packed_dcore_line_is_one_record_per_conversation():
    first, second = DCORE["conversations"], [{"role": "system", "content": "T"}, USER, ANSWER, USER, ANSWER]
    records = parse_record(
        {"conversations": first + second, "single_conv_last_idx": [2, 7]}, origin="m.jsonl:4"
    )
    assert [list(record.messages) for record in records] == [first, second]
    assert {record.origin for record in records} == {"m.jsonl:4"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1, 2], "a record must be a JSON object, not list"),
        ({}, "unknown format with fields (none)"),
        ({"text": "a", "label": 1}, "unknown format with fields label, text"),
        ({"prompt": [USER], "reward_model": {}}, "reward_model.ground_truth is missing"),
        (
            {"prompt": [USER], "reward_model": {"ground_truth": "[ls()]"}},
            "an RL prompt (prompt, reward_model), which holds no answer to learn from",
        ),
        ({"messages": []}, "empty messages"),
        ({"messages": "hello"}, "messages is a string that is not JSON"),
        ({"messages": {"role": "user"}}, "messages must be a list, not dict"),
        ({"messages": ["hello"]}, "a message must be an object, not str"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "content of an assistant message must be text, not int"),
        ({"messages": [{"role": "user"}, ANSWER]}, "a user message without content"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "an assistant turn without content or tool calls"),
        ({"messages": [USER, {**ANSWER, "reasoning_content": 1}]}, "reasoning_content must be text"),
        ({"messages": [USER, calling("{broken")]}, "tool call arguments is a string that is not JSON"),
        ({"messages": [USER, calling("[1]")]}, "tool call arguments must be an object, not list"),
        ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{}]}]}, "a tool call without a name"),
        ({"messages": [USER, {**ANSWER, "tool_calls": ["f"]}]}, "a tool call must be an object, not str"),
        ({**CHAT, "tools": "{"}, "tools is a string that is not JSON"),
        ({**CHAT, "tools": ["ls"]}, "tools must be a list of objects"),
        ({**CHAT, "category": 3}, "category must be a string, not int"),
        ({**CHAT, "loss_turns": "first"}, "loss_turns must be 'every' or 'last', not 'first'"),
        ({**TOOLRL, "output": ""}, "empty output"),
        ({**TOOLRL, "input": " "}, "empty input"),
        ({**TOOLRL, "output": 1.5}, "output must be text, not float"),
        ({"conversations": []}, "empty conversations"),
        (
            {"conversations": [USER, ANSWER, USER], "single_conv_last_idx": [2]},
            "a conversation that does not end with an assistant turn",
        ),
        ({"conversations": [{"from": "function", "value": "x"}]}, "no assistant turn"),
        ({"conversations": [USER, {**ANSWER, "weight": 1.5}]}, "weight of a message must be true, false or a number in [0, 1]"),
        ({"messages": [USER, {**ANSWER, "weight": 0, "train": True}]}, "train and weight of a message contradict each other"),
        ({"messages": [{**USER, "train": True}, ANSWER]}, "a user message marked to be trained on, which is not supported"),
        (
            {"messages": [USER, {**ANSWER, "function_call": {"name": "f"}, "tool_calls": [{"name": "f"}]}]},
            "a function_call beside tool_calls",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}]}, ANSWER]},
            "a content part of type 'image_url', of which only text can be read",
        ),
        ({"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ANSWER]}, "tool calls in a user message"),
        ({**TOOLRL, "history": [["q", "a"]]}, "a history beside a ToolRL dialogue, which holds its own"),
        ({**TOOLRL, "system": "S"}, "a system field beside a system turn"),
        ({**CHAT, "system": 5}, "content of a system message must be text, not int"),
        ({"conversations": [USER, ANSWER], "single_conv_last_idx": [0]}, "single_conv_last_idx must end at the last message"),
        ({"conversations": [USER, ANSWER], "single_conv_last_idx": [-1]}, "single_conv_last_idx must end at the last message"),
        ({"conversations": [USER], "single_conv_last_idx": [0, 0]}, "single_conv_last_idx must be a rising list of integers"),
    ],
)  # fmt: skip
def test_a_malformed_record_is_turned_away_with_its_reason(row, reason):
    with pytest.raises(Malformed) as caught:
        parse_record(row, origin="here:1")
    assert str(caught.value) == reason


def nested(depth):
    return [nested(depth - 1)] if depth else 1


UNWRITABLE = {
    "tool call arguments: a number that is not finite": {"tool_calls": [{"name": "f", "arguments": {"a": [float("nan")]}}]},
    "tool call arguments: text with a lone surrogate": {"tool_calls": [{"name": "f", "arguments": {"\ud83d": 1}}]},
    "tool call arguments: too many values": {"tool_calls": [{"name": "f", "arguments": {"a": list(range(4097))}}]},
    "tool call arguments: nested too deep": {"tool_calls": [{"name": "f", "arguments": {"a": nested(33)}}]},
    "tool call arguments: a number with too many digits": {"tool_calls": [{"name": "f", "arguments": {"a": 10**400}}]},
    "a tool call without a name": {"tool_calls": [{"name": "", "arguments": {}}]},
    "text with a lone surrogate in a tool call": {"tool_calls": [{"name": "f\udc00"}]},
    "text with a lone surrogate in an assistant message": {"reasoning_content": "hm \ud83d"},
}  # fmt: skip


@pytest.mark.parametrize("field", ["messages", "conversations"])
@pytest.mark.parametrize(("reason", "last"), UNWRITABLE.items(), ids=UNWRITABLE)
def test_what_no_template_could_write_is_counted_and_its_neighbours_stay(tmp_path, field, reason, last):
    path = write(tmp_path / "t.jsonl", CHAT, {field: [USER, {**ANSWER, **last}]}, DCORE)
    records, rejections = read_records(path)
    assert (len(records), rejections.examples) == (2, {reason: f"{path}:2"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{**USER, "content": "\ud83d"}, ANSWER]}, "text with a lone surrogate in a user message"),
        ({"conversations": [{"from": "human", "value": "\ud83d"}, ANSWER]}, "text with a lone surrogate in a user message"),
        ({**TOOLRL, "instruction": "\ud83d"}, "text with a lone surrogate in a system message"),
        ({**TOOLRL, "input": "\ud83d"}, "text with a lone surrogate in a user message"),
        ({**TOOLRL, "output": "\ud83d"}, "text with a lone surrogate in an assistant message"),
        ({**CHAT, "tools": [{**TOOL, "note": "\ud83d"}]}, "tools: text with a lone surrogate"),
        ({**CHAT, "tools": [{**TOOL, "note": float("inf")}]}, "tools: a number that is not finite"),
        ({**CHAT, "category": "\ud83d"}, "text with a lone surrogate in category"),
        ({"\ud83d": 1}, "unknown format with fields \\ud83d"),
    ],
)  # fmt: skip
def test_a_lone_surrogate_anywhere_in_a_record_is_a_reason_that_can_be_printed(row, reason):
    with pytest.raises(Malformed) as caught:
        parse_record(row, origin="here:1")
    assert str(caught.value) == reason
    assert reason.encode()


def test_long_tool_lists_are_not_bound_by_what_one_response_may_hold():
    assert one({**CHAT, "tools": [{**TOOL, "enum": list(range(10_000))}]}).tools


FIELDS = [
    *("messages", "conversations", "instruction", "input", "output", "tools", "category", "loss_turns"),
    *(
        "role",
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "from",
        "value",
        "single_conv_last_idx",
    ),
]
json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant", "[]", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_whatever_a_row_holds_it_parses_or_is_malformed(row):
    records, reason = None, ""
    with contextlib.suppress(Malformed):
        records = parse_record(row, origin="here:1")
    if records is None:
        with pytest.raises(Malformed) as caught:
            parse_record(row, origin="here:1")
        reason = str(caught.value)
    assert records or reason
    assert "\n" not in reason
    assert all(any(m["role"] == "assistant" for m in record.messages) for record in records or [])


def test_a_long_list_of_reasons_ends_with_how_many_more_there_are():
    rejections = Rejections()
    for i in range(30):
        rejections.add(f"reason {i:02}", "x:1")
    assert rejections.lines()[-1] == "10 x 10 other reasons"


# --- files ---


def test_jsonl_a_json_array_and_parquet_of_the_same_rows_read_the_same(tmp_path):
    rows = [{"messages": [USER, ANSWER], "tools": json.dumps([TOOL]), "category": c} for c in "abc"]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = {}
    for name in ("a.jsonl", "a.json", "a.parquet"):
        records, rejections = read_records(tmp_path / name)
        assert rejections.total == 0
        read[name] = [(record.messages, record.tools, record.category) for record in records]
    assert read["a.jsonl"] == read["a.json"] == read["a.parquet"]
    assert [category for _, _, category in read["a.jsonl"]] == ["a", "b", "c"]


def test_a_pretty_printed_single_object_is_one_record(tmp_path):
    (tmp_path / "one.json").write_text("\ufeff" + json.dumps(TOOLRL, indent=2), encoding="utf-8")
    records, rejections = read_records(tmp_path / "one.json")
    assert (len(records), rejections.total) == (1, 0)


def test_origins_name_file_and_line_and_the_file_is_the_default_category(tmp_path):
    path = write(tmp_path / "train.jsonl", TOOLRL, "\n", CHAT)
    records, _ = read_records([path])
    assert [record.origin for record in records] == [f"{path}:1", f"{path}:3"]
    assert [record.category for record in records] == ["train", "files"]

    array = tmp_path / "train.json"
    array.write_text('[\n{"text": "a\\n"},\n\n' + json.dumps(TOOLRL) + ",\n" + json.dumps(TOOLRL) + "\n]\n")
    records, rejections = read_records(array)
    assert [record.origin for record in records] == [f"{array}:4", f"{array}:5"]
    assert rejections.examples == {"unknown format with fields text": f"{array}:2"}


def test_rejections_are_counted_by_reason_with_the_first_origin(tmp_path):
    path = write(tmp_path / "t.jsonl", CHAT, "{broken\n", {"messages": []}, "also broken\n")
    path.write_bytes(path.read_bytes() + b'"\xff"\n')
    records, rejections = read_records(path)
    assert len(records) == 1
    assert rejections.counts == {"invalid JSON": 2, "empty messages": 1, "not UTF-8": 1}
    assert rejections.examples == {
        "invalid JSON": f"{path}:2",
        "empty messages": f"{path}:3",
        "not UTF-8": f"{path}:5",
    }
    assert rejections.lines() == [
        f"2 x invalid JSON (first: {path}:2)",
        f"1 x empty messages (first: {path}:3)",
        f"1 x not UTF-8 (first: {path}:5)",
    ]


def test_strict_stops_at_the_first_rejection_naming_file_and_line(tmp_path):
    path = write(tmp_path / "t.jsonl", CHAT, CHAT, {"messages": []}, "broken\n")
    with pytest.raises(UserError, match=rf"^{path}:3: empty messages; fix"):
        read_records(path, strict=True)


def test_a_break_in_a_json_array_keeps_what_came_before_and_says_so(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text("[" + json.dumps(TOOLRL) + ",\n" + json.dumps(TOOLRL)[:-9])
    records, rejections = read_records(path)
    assert len(records) == 1
    assert rejections.examples == {"invalid JSON in an array: nothing from it on was read": f"{path}:2"}


@pytest.mark.parametrize("text", ["[", "[1", "[1 2]", "[1,]", "[,1]", "[1,,2]"])
def test_no_broken_array_reads_as_a_whole_one(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    _, rejections = read_records(path)
    assert "invalid JSON in an array: nothing from it on was read" in rejections.counts


@pytest.mark.parametrize(
    ("after", "line"),
    [(json.dumps([TOOLRL, TOOLRL]), 3), ("]", 3), (json.dumps(TOOLRL), 3), (" {", 3), ("\n\nx", 5)],
)
@pytest.mark.parametrize("before", [[TOOLRL], []])
def test_text_after_a_json_array_is_counted_at_its_line_and_not_read(tmp_path, before, after, line):
    path = tmp_path / "two.json"
    path.write_text("\n" + json.dumps(before) + " \n" + after)
    records, rejections = read_records(path)
    assert len(records) == len(before)
    assert rejections.examples == {"text after a JSON array: nothing from it on was read": f"{path}:{line}"}


@given(
    st.lists(
        st.sampled_from([json.dumps(CHAT), json.dumps(TOOLRL), "{", "[]", "3", '{"messages": []}', "", " "])
    )
)
@settings(max_examples=50, deadline=None)
def test_every_line_that_is_not_blank_is_a_record_or_a_rejection(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_text("\n".join(lines))
    records, rejections = read_records(path)
    assert len(records) + rejections.total == sum(bool(line.strip()) for line in lines)
    assert len(records) == sum('"output"' in line or '"files"' in line for line in lines)


def test_a_file_that_cannot_be_read_raises_one_line_that_names_it(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "latin.json").write_bytes(b'["\xff"]')
    cases = {
        "gone.jsonl": "no such file",
        "x.csv": "extension",
        "x.parquet": "Parquet",
        "latin.json": "UTF-8",
    }
    for name, why in cases.items():
        with pytest.raises(UserError, match=rf"^{tmp_path / name}: .*{why}") as caught:
            read_records(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_parquet_nulls_inside_a_struct_are_not_taken_for_arguments(tmp_path, field):
    rows = [{field: [USER, calling(arguments)]} for arguments in ({"path": "a"}, {"mode": 1})]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    records, rejections = read_records(tmp_path / "a.parquet")
    assert not records
    assert rejections.counts == {
        "nulls inside a Parquet struct of arguments: store arguments as a JSON string": 2
    }


def test_a_hub_path_is_fetched_through_the_hub_client(tmp_path, monkeypatch):
    file = write(tmp_path / "t.jsonl", CHAT)
    asked = []

    def download(repo, name, **given):
        asked.append((repo, name, given["repo_type"], given["revision"]))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    records, _ = read_records(["hf://datasets/me/tools@v2/data/t.jsonl"])
    assert asked == [("me/tools", "data/t.jsonl", "dataset", "v2")]
    assert records[0].origin == "hf://datasets/me/tools@v2/data/t.jsonl:1"

    def refuse(*_, **__):
        raise OSError("404\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"cannot fetch from the hub: 404$"):
        read_records("hf://datasets/me/tools/t.jsonl")
    with pytest.raises(UserError, match="<owner>/<name>/<file>"):
        read_records("hf://datasets/t.jsonl")


def test_all_real_toolrl_records_read_and_its_rl_prompts_are_rejected_by_name(real_data):
    records, rejections = read_records(real_data / "toolrl" / "rlla_sft.json")
    assert (len(records), rejections.total) == (400, 0)
    records, rejections = read_records(real_data / "toolrl" / "rlla_test.parquet")
    assert not records
    assert rejections.counts == {
        "an RL prompt (prompt, reward_model), which holds no answer to learn from": 80
    }
