"""Draws of rows and Hammer's masking of names, as options of a data name in every recipe."""

import json

import pytest

from dcore_jax.data import Malformed, read_records
from dcore_jax.data.name_masking import mask_names
from dcore_jax.data.sources import read_sources
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.errors import UserError
from dcore_jax.rl.prompts import read_questions

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "The city to look up"},
        "days": {"type": "integer"},
    },
    "required": ["city"],
}
FLAT = {"city": {"type": "str", "description": "The city to look up"}, "days": {"type": "int", "default": 1}}
CALL = {"name": "weather", "arguments": {"city": "weather"}}
XLAM = {
    "query": "weather in the city of Oslo?",
    "tools": json.dumps([{"name": "weather", "description": "The weather of a city.", "parameters": FLAT}]),
    "answers": json.dumps([CALL]),
}
CHAT = {
    "messages": [
        {"role": "user", "content": "weather in the city of Oslo?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
            ],
        },
        {"role": "tool", "name": "weather", "content": "weather: rain"},
        {"role": "assistant", "content": "weather: rain"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "weather", "description": "The weather of a city.", "parameters": SCHEMA},
        }
    ],
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_names_change_in_tools_and_calls_together_and_nothing_else_does():
    masked = mask_names(XLAM, "1")
    (tool,), (call,) = json.loads(masked["tools"]), json.loads(masked["answers"])
    assert call["name"] == tool["name"] != "weather" and tool["name"].isalnum()
    city, days = tool["parameters"]
    assert call["arguments"] == {city: "weather"} and city != "city" and days not in ("days", city)
    assert tool["description"] == "The weather of a city." and masked["query"] == XLAM["query"]
    assert list(tool["parameters"].values()) == list(FLAT.values())

    chat = mask_names(CHAT, "1")
    function = chat["tools"][0]["function"]
    called = chat["messages"][1]["tool_calls"][0]["function"]
    assert called["name"] == function["name"] == chat["messages"][2]["name"] != "weather"
    assert (
        list(json.loads(called["arguments"]))
        == function["parameters"]["required"]
        == list(function["parameters"]["properties"])[:1]
    )
    assert [m["content"] for m in chat["messages"]] == [m["content"] for m in CHAT["messages"]]
    assert mask_names(CHAT, "1") == chat != mask_names(CHAT, "2")
    assert CHAT["tools"][0]["function"]["name"] == "weather"  # the row given is untouched


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no `tools` field"),
        (
            {**CHAT, "messages": [{"role": "assistant", "content": '[weather(city="Oslo")]'}]},
            "stand in the text of a turn",
        ),
        (
            {**XLAM, "answers": [{"name": "alarm", "arguments": {}}]},
            "a call of a tool that is not offered, in answers",
        ),
        ({**XLAM, "answers": [{"name": ["weather"]}]}, "a call of a tool that is not offered"),
        ({**XLAM, "tools": "["}, "tools is text that is not JSON"),
    ],
)
def test_a_row_that_cannot_be_masked_is_left_out_with_the_reason(row, reason, tmp_path):
    with pytest.raises(Malformed, match=f"names=masked: .*{reason}"):
        mask_names(row, "1")
    _, rejections = read_records(write(tmp_path / "d.jsonl", row) + ":names=masked")
    assert any(reason in text for text in rejections.counts)


def test_sft_rl_and_seeds_read_masked_names_and_the_report_counts_them(tmp_path):
    name, counts = write(tmp_path / "d.jsonl", CHAT, CHAT) + ":names=masked", {}
    records, _ = read_records(name)
    (called,) = {record.messages[1]["tool_calls"][0]["function"]["name"] for record in records[:1]}
    assert called == records[0].tools[0]["function"]["name"] != "weather"
    assert records[0].tools != records[1].tools  # every row has strings of its own
    questions, rejections = read_questions([name], "qwen", counts=counts)
    assert questions[0].reference[0].name == called and not rejections.counts.keys() & {"names=masked"}
    assert "2 rows, names masked in 2" in str(counts[name])
    twice = [row.row for row in read_sources(f"{name},weight=2")]
    assert twice[0] == twice[1] != twice[2]  # the copies of a row are alike
    seeds, _ = read_seeds([f"xlam:{write(tmp_path / 'x.jsonl', XLAM)}:names=masked"])
    assert seeds[0].reference[0].name == seeds[0].tools[0]["function"]["name"] != "weather"


def test_a_draw_takes_exactly_so_many_rows_and_a_larger_one_takes_those_and_more(tmp_path):
    name = write(tmp_path / "d.jsonl", *({"messages": [], "n": n} for n in range(50)))

    def drawn(options, seed=0):
        return [row.row["n"] for row in read_sources(f"{name}:{options}", seed=seed)]

    few, more = drawn("draw=10"), drawn("draw=30")
    assert (
        len(few) == 10 and few == sorted(few) != list(range(10)) and set(few) < set(more) and len(more) == 30
    )
    assert drawn("draw=10") == few != drawn("draw=10", seed=1)
    assert drawn("draw=10,seed=0", seed=1) == few  # a seed of its own keeps the data whatever the run's is
    assert set(drawn("draw=5,rows=8")) <= set(range(8))
    with pytest.raises(UserError, match=r"d.jsonl:draw=51: draw=51 is more than the 50 rows there are"):
        drawn("draw=51")


def test_the_mix_of_toolrl_is_three_names(tmp_path):
    """2,000 of ToolACE, 1,000 of Hammer with masked names, 1,000 of xLAM, here a hundredth of each."""
    ace = write(tmp_path / "ace.jsonl", *(CHAT for _ in range(30)))
    xlam = write(tmp_path / "xlam.jsonl", *(XLAM for _ in range(20)))
    names, counts = [f"{ace}:draw=20", f"{xlam}:draw=10,seed=1,names=masked", f"{xlam}:draw=10,seed=2"], {}
    questions, _ = read_questions(names, "tags", counts=counts)
    assert [(count.taken, count.masked) for count in counts.values()] == [(20, 0), (10, 10), (10, 0)]
    assert (
        sum(
            question.reference[:1] != () and question.reference[0].name != "weather" for question in questions
        )
        == 10
    )
