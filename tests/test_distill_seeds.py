"""Seeds: every format's record makes the samples it should, and what makes none is counted."""

import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax.calls import CALL_FORMATS, Call, calls_equal, parse_calls, render_calls
from dcore_jax.data.files import Malformed
from dcore_jax.data.tool_schemas import openai_tool, openai_tools, relax_required, type_schema
from dcore_jax.distill.act import respond, start_environment
from dcore_jax.distill.ask import Rejected
from dcore_jax.distill.kinds import asks, detect_kind, refuses
from dcore_jax.distill.labels import read_labels
from dcore_jax.distill.sample import KINDS, SeedSample
from dcore_jax.distill.seeds import SOURCES, parse_seed, read_seeds
from dcore_jax.distill.seeds.conversation import match_answers
from dcore_jax.distill.seeds.toolace import split_system
from dcore_jax.errors import UserError
from dcore_jax.toolworld import ToolWorld, generate_tasks


def samples(source, row):
    found = list(parse_seed(source, row, "file:1"))
    assert all(isinstance(item, SeedSample) for item in found), found
    return found


def only(source, row):
    (found,) = samples(source, row)
    return found


def reasons(source, row):
    return [str(item) for item in parse_seed(source, row, "file:1") if isinstance(item, Malformed)]


def call(name, **arguments):
    return Call(name, arguments)


def schema(name, required=(), **types):
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": f"does {name}", "parameters": parameters}


# --- kinds ---


@pytest.mark.parametrize(
    ("calls", "kind"),
    [
        ([1], "sequential"),
        ([1, 1, 1], "sequential"),
        ([2], "parallel"),
        ([3, 1], "sequential"),
        ([1, 2], "sequential"),
    ],
)
def test_the_number_of_calls_in_each_message_decides_between_chain_and_parallel(calls, kind):
    assert detect_kind(calls, "", tools_offered=True, answered=True) == kind


@pytest.mark.parametrize(
    "words",
    [
        "None of the given functions can book a ferry.",
        "I'm sorry, there is no tool for that.",
        "The function getTide needs a harbour, but the required parameter is missing.",
        "I cannot do this with what I have been given.",
        "This isn’t something the available tools can do.",
        "Which harbour do you mean?",
        "Happy to! Please tell me the name of the harbour.",
        "no tool here can do this.",
    ],
)
def test_refusing_and_asking_without_a_call_is_irrelevant(words):
    assert detect_kind([], words, tools_offered=True, answered=False) == "irrelevant"


@pytest.mark.parametrize(
    "words",
    [
        "You're welcome! Is there anything else I can help you with?",
        "The tide follows the moon. It rises twice a day.",
        "Great choice, enjoy the trip! Let me know if you need more.",
        "What makes a tide? The pull of the moon. The sun adds to it. That is all there is to it.",
    ],
)
def test_talk_without_a_call_is_left_out(words):
    with pytest.raises(Malformed, match="neither refuse nor ask"):
        detect_kind([], words, tools_offered=True, answered=False)


def test_words_after_a_response_are_a_report_whatever_they_say():
    assert detect_kind([], "Which one do you want?", tools_offered=True, answered=True) == "report"


@pytest.mark.parametrize("calls", [[], [1], [2]])
def test_a_turn_without_offered_tools_makes_no_sample(calls):
    with pytest.raises(Malformed, match="no tools are offered"):
        detect_kind(calls, "Which one?", tools_offered=False, answered=False)


@pytest.mark.parametrize(
    ("calls", "answered", "stated"),
    [([1], False, "parallel"), ([], False, "report"), ([], True, "irrelevant"), ([2], False, "irrelevant")],
)
def test_a_stated_kind_that_the_turn_contradicts_is_left_out(calls, answered, stated):
    with pytest.raises(Malformed, match="does not fit"):
        detect_kind(calls, "words", tools_offered=True, answered=answered, stated=stated)


@given(st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_text_can_be_judged(words):
    assert isinstance(refuses(words), bool) and isinstance(asks(words), bool)


# --- tool schemas ---


@pytest.mark.parametrize(
    ("written", "expected", "optional"),
    [
        ("str", {"type": "string"}, False),
        ("str, optional", {"type": "string"}, True),
        ("int, default 5", {"type": "integer"}, True),
        ("Optional[float]", {"type": "number"}, True),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}, False),
        ("List[List[float]], optional", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, True),
        ("Tuple[float, float]", {"type": "array", "items": {"type": "number"}}, False),
        ("Tuple[str, float]", {"type": "array"}, False),
        ("Dict[str, int]", {"type": "object", "additionalProperties": {"type": "integer"}}, False),
        ("dict", {"type": "object"}, False),
        ("Union[int, str]", {"type": ["integer", "string"]}, False),
        ("int | None", {"type": ["integer", "null"]}, False),
        ("List[Union[int, float]]", {"type": "array", "items": {"type": ["integer", "number"]}}, False),
        ("any", {}, False),
        ("Callable[[float], float]", {}, False),
        ("", {}, False),
    ],
)  # fmt: skip
def test_type_names_of_the_data_sets_become_json_schema(written, expected, optional):
    assert type_schema(written) == (expected, optional)


def test_python_names_are_converted_at_every_depth_of_a_schema():
    tool = openai_tool(
        {
            "name": "Plan Route (v2)",
            "description": "plans",
            "parameters": {
                "type": "dict",
                "properties": {
                    "stops": {
                        "type": "list",
                        "items": {"type": "dict", "properties": {"km": {"type": "float"}}},
                    },
                    "type": {"type": "str", "enum": ["fast", "short"]},
                    "solver": {"type": "Callable", "description": "a function"},
                },
                "required": ["stops", "gone"],
            },
            "required": None,
        }
    )["function"]
    properties = tool["parameters"]["properties"]
    assert tool["name"] == "Plan Route (v2)" and tool["parameters"]["type"] == "object"
    assert properties["stops"]["items"] == {"type": "object", "properties": {"km": {"type": "number"}}}
    assert properties["type"] == {"type": "string", "enum": ["fast", "short"]}
    assert properties["solver"] == {"description": "a function (Callable)"}
    assert tool["parameters"]["required"] == ["stops"]


def test_the_flat_dialect_says_what_is_required_by_what_it_calls_optional():
    tool = openai_tool(
        {
            "name": "tide",
            "description": "",
            "parameters": {
                "type": {"type": "str", "description": "of tide", "default": ""},
                "harbour": {"type": "str", "description": ""},
                "day": {"type": "int, optional", "description": ""},
                "unit": {"type": "str", "description": "", "default": "m"},
            },
        }
    )["function"]["parameters"]
    assert tool["required"] == ["type", "harbour"]
    assert tool["properties"]["unit"]["default"] == "m" and "default" not in tool["properties"]["type"]
    relaxed = relax_required(openai_tools([{"name": "f", "parameters": {"a": {"type": "str"}, "b": {"type": "str"}}}]),
                             [call("f", a="x")])  # fmt: skip
    assert relaxed[0]["function"]["parameters"]["required"] == ["a"]


def test_an_openai_schema_comes_back_as_it_is():
    for task in generate_tasks(8, seed=0):
        assert openai_tools(list(task.tools)) == task.tools


_KEYS = st.sampled_from(
    ["type", "name", "properties", "items", "city", "required", "description", "parameters", "default"]
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["dict", "str, optional", "List[int]", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, _JSON, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_tool_is_normalised_once_and_for_all_or_named_malformed(parameters):
    try:
        tool = openai_tool({"name": "f", "parameters": parameters})
    except Malformed:
        return
    assert openai_tool(tool) == tool
    assert set(tool["function"]["parameters"]["required"]) <= set(
        tool["function"]["parameters"]["properties"]
    )


@pytest.mark.parametrize(
    "tools", ["{", "3", [3], [{"description": "nameless"}], [{"name": "f", "parameters": 3}]]
)
def test_tools_that_cannot_be_read_are_named_malformed(tools):
    with pytest.raises(Malformed):
        openai_tools(tools)


# --- responses ---


def test_one_answer_with_an_item_a_call_is_dealt_out_by_name_else_by_order():
    calls = [call("a"), call("b")]
    answer = json.dumps([{"name": "b", "results": 2}, {"name": "a", "results": 1}])
    assert match_answers(calls, [answer]) == ('{"name": "a", "results": 1}', '{"name": "b", "results": 2}')
    twice = json.dumps([{"name": "a", "results": 2}, {"name": "a", "results": 1}])
    assert match_answers([call("a"), call("a", x=1)], [twice])[0] == '{"name": "a", "results": 2}'
    assert match_answers(calls, ["x", "y"]) == ("x", "y")
    assert match_answers(calls[:1], ["plain text"]) == ("plain text",)
    assert match_answers(calls, ["plain text"]) is None
    assert match_answers(calls, []) == ()


# --- ToolACE ---

_TIDE = {
    "name": "Tide Table API",
    "description": "tides",
    "parameters": {
        "type": "dict",
        "properties": {"harbour": {"type": "string"}, "day": {"type": "int"}},
        "required": ["harbour"],
    },
    "required": None,
}
_BOAT = {
    "name": "boats.find",
    "description": "boats",
    "parameters": {"type": "dict", "properties": {"tide": {"type": "float"}}},
}


def toolace(*turns, tools=(_TIDE, _BOAT)):
    system = (
        "You compose functions [carefully]. Say so where none fits.\nHere is a list of functions in JSON format that you can "
        f"invoke:\n{json.dumps(list(tools))}. \nShould you decide to return the function call(s), use brackets.\n"
    )
    speakers = [("user", "assistant")[i % 2] for i in range(len(turns))]
    conversations = [
        turn if isinstance(turn, dict) else {"from": speaker, "value": turn}
        for speaker, turn in zip(speakers, turns)
    ]
    return {"system": system, "conversations": conversations}


def said(speaker, value):
    return {"from": speaker, "value": value}


def test_toolace_names_with_spaces_and_dict_types_are_read():
    sample = only(
        "toolace", toolace("When is high tide in Ostend?", '[Tide Table API(harbour="Ostend", day=3)]')
    )
    assert sample.kind == "sequential" and sample.responses == ()
    assert calls_equal(sample.reference, [call("Tide Table API", harbour="Ostend", day=3)])
    assert sample.policy == "You compose functions [carefully]. Say so where none fits."
    assert sample.tools[0]["function"]["parameters"]["properties"]["day"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("system", "policy"),
    [
        (
            "You compose functions. If none fits,\nsay so. You should only return the function call in tools call sections.\n"
            "Here is a list of functions in JSON format that you can invoke:\nTOOLS. \n"
            "Should you decide to return the function call(s). \n"
            "Put it in the format of [func1(params_name=params_value, params_name2=params_value2...), func2(params)]\n\n"
            "NO other text MUST be included. \nThe time is noon. Be kind.",
            "You compose functions. If none fits,\nsay so.\nThe time is noon. Be kind.",
        ),
        (
            "Be kind. You should only return the function calls in your response.\n\nIf you decide to invoke any of the "
            "function(s), you MUST put it in the format of [func_name1(a=b...)].  You SHOULD NOT include any other text in "
            "the response.\n\nIt is noon.\nHere is a list of functions in JSON format that you can invoke.\nTOOLS\n",
            "Be kind. \n\n\n\nIt is noon.",
        ),
        ("Be kind.\nTOOLS\nShould you decide to return the function call(s), use brackets. Be brief.", "Be kind.\nBe brief."),
    ],
)  # fmt: skip
def test_toolace_sentences_on_how_to_call_leave_the_policy_and_what_stands_beside_them_stays(system, policy):
    tools = json.dumps([_TIDE])
    assert split_system(system.replace("TOOLS", tools)) == (policy, [_TIDE])


@pytest.mark.parametrize(
    "text",
    ["\n", ". ", "a", "list of functions in JSON format ", "Put it in the format of[", "NO other text MUST be included "],
)  # fmt: skip
def test_a_long_system_text_is_taken_apart_in_linear_time(text):
    filling = text * (300_000 // len(text))
    started = time.process_time()
    split_system(f"{filling}{json.dumps([_TIDE])}{filling}")
    assert time.process_time() - started < 5  # quadratic: minutes


def test_toolace_calls_inside_words_are_found_and_the_words_kept():
    text = 'Let me look: [Tide Table API(harbour="Ost]end (\\"old\\")")] One moment.'
    sample = only("toolace", toolace("High tide?", text))
    assert calls_equal(sample.reference, [call("Tide Table API", harbour='Ost]end ("old")')])
    assert sample.answer == "Let me look:\nOne moment."


def test_toolace_names_that_cannot_stand_bare_and_json_words_are_read():
    tools = [
        schema("Songs of the '90s (rock, pop)", title="string", live="boolean"),
        schema("plain", a="array"),
    ]
    text = """[Songs of the '90s (rock, pop)(title="true, [false] null", live=true), plain(a=[null, 'it is true', false])]"""
    (sample,) = samples("toolace", toolace("Songs?", text, tools=tools))
    expected = [
        call(tools[0]["name"], title="true, [false] null", live=True),
        call("plain", a=[None, "it is true", False]),
    ]
    assert calls_equal(sample.reference, expected)


def test_brackets_in_words_that_open_with_no_offered_tool_are_words():
    sample = only("toolace", toolace("High tide?", "Which harbour [see f(x)] do you mean?"))
    assert sample.kind == "irrelevant" and sample.answer == "Which harbour [see f(x)] do you mean?"


def test_a_chain_is_one_sequential_sample_and_its_report_another():
    chain, report, thanks = samples(
        "toolace",
        toolace(
            "A boat for high tide in Ostend?",
            '[Tide Table API(harbour="Ostend")]',
            said("tool", '[{"name": "Tide Table API", "results": {"metres": 4.5}}]'),
            said("assistant", "[boats.find(tide=4.5)]"),
            said("tool", '[{"name": "boats.find", "results": ["Zwin"]}]'),
            said("assistant", "Take the Zwin."),
            said("user", "And tomorrow?"),
            said("assistant", "Which harbour tomorrow?"),
        ),
    )
    assert chain.kind == "sequential" and [c.name for c in chain.reference] == [
        "Tide Table API",
        "boats.find",
    ]
    assert [json.loads(text)["results"] for text in chain.responses] == [{"metres": 4.5}, ["Zwin"]]
    assert chain.history == ()
    assert report.kind == "report" and report.reference == () and report.answer == "Take the Zwin."
    assert [m["role"] for m in report.history] == ["user", "assistant", "tool", "assistant", "tool"]
    assert report.history[0]["content"] == report.query == chain.query
    assert report.history[1]["tool_calls"][0]["function"] == {
        "name": "Tide Table API",
        "arguments": {"harbour": "Ostend"},
    }
    assert thanks.kind == "irrelevant" and thanks.query == "And tomorrow?"
    assert [m["role"] for m in thanks.history] == [*(m["role"] for m in report.history), "assistant"]


def test_a_mixed_chain_is_sequential_in_the_order_written():
    sample, _ = samples(
        "toolace",
        toolace(
            "Two harbours, then a boat.",
            '[Tide Table API(harbour="A"), Tide Table API(harbour="B")]',
            said(
                "tool", '[{"name": "Tide Table API", "results": 1}, {"name": "Tide Table API", "results": 2}]'
            ),
            said("assistant", "[boats.find(tide=2)]"),
            said("tool", "[]"),
            said("assistant", "There is none."),
        ),
    )
    assert sample.kind == "sequential"
    assert [dict(c.arguments) for c in sample.reference] == [{"harbour": "A"}, {"harbour": "B"}, {"tide": 2}]
    assert len(sample.responses) == 3


def test_a_chain_that_ends_with_a_call_has_an_empty_last_response():
    sample = only(
        "toolace",
        toolace(
            "A boat?",
            '[Tide Table API(harbour="A")]',
            said("tool", "4"),
            said("assistant", "[boats.find(tide=4)]"),
        ),
    )
    assert sample.responses == ("4", "")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (["Hi", '[Tide Table API(harbour="A"'], None),
        (["Hi", '[Tide Table API(harbour=Ostend)]'], "calls that cannot be read"),
        (["Hi", '[Moon API(day=1)]'], "a reference call to a tool that is not offered"),
        (["Hi", '[Tide Table API(harbour="A", moon=1)]'], "a reference call with a parameter that its tool does not have"),
        (["Hi", "[Tide Table API(day=1)]"], "a reference call without a required parameter"),
        (["Hi", "Hello!"], "words without a call that neither refuse nor ask"),
        (["Hi"], "a request without an answer"),
        (["  ", '[Tide Table API(harbour="A")]'], "an empty request"),
        ([said("assistant", "Hello")], "a message of the assistant before any request"),
        (["Hi", said("tool", "3")], "a tool's response without a call"),
        (["Hi", said("observer", "3")], "unknown speaker 'observer'"),
        (["Hi", {"from": "assistant"}], "a message without text"),
        (
            ["Hi", '[boats.find(tide=1), boats.find(tide=2)]', said("tool", "3"), said("assistant", "[boats.find(tide=3)]")],
            "responses that cannot be matched to the calls",
        ),
        (["Hi", "[boats.find(tide=1)]", said("assistant", "[boats.find(tide=3)]")],
         "a chain of calls whose responses were not recorded"),
        (["Hi", "[boats.find(tide=1)]", said("assistant", "It sails.")], "a report on calls whose responses were not recorded"),
        (["Hi", "One moment.", said("assistant", "[boats.find(tide=1)]")], "words of the assistant amid its calls"),
    ],
)  # fmt: skip
def test_what_makes_no_sample_says_why(turns, reason):
    found = reasons("toolace", toolace(*turns))
    assert found and (reason is None or reason in found)


# --- xLAM and Hammer ---


def xlam(answers, tools=None, query="Tides of A and B?"):
    flat = [{"name": "tide", "description": "", "parameters": {"harbour": {"type": "str", "description": "", "default": "X"},
             "day": {"type": "int, optional", "description": ""}}}]  # fmt: skip
    return {"id": 7, "query": query, "answers": json.dumps(answers), "tools": json.dumps(tools or flat)}


def test_xlam_answers_make_a_chain_of_one_or_a_parallel_sample_or_an_irrelevant_one():
    one = {"name": "tide", "arguments": {"harbour": "A"}}
    two = {"name": "tide", "arguments": json.dumps({"harbour": "B", "day": 2})}
    assert only("xlam", xlam([one])).kind == "sequential"
    both = only("xlam", xlam([one, two]))
    assert both.kind == "parallel" and both.responses == ()
    assert calls_equal(both.reference, [call("tide", harbour="A"), call("tide", harbour="B", day=2)])
    masked = only("hammer", xlam([]))
    assert (masked.kind, masked.source, masked.answer, masked.reference) == ("irrelevant", "hammer", "", ())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": "x", "answers": "[", "tools": "[]"}, "answers is text that is not JSON"),
        ({"query": "x", "answers": "3", "tools": "[]"}, "answers must be a list of calls, or its JSON text"),
        (xlam([{"name": "tide"}]), "answers holds something that is not a call with a name and arguments"),
        (xlam([3]), "answers holds something that is not a call with a name and arguments"),
        (
            xlam([{"name": "tide", "arguments": {"harbour": float("nan")}}]),
            "calls that no call format can carry",
        ),
        ({"query": "x", "answers": "[]", "tools": "[]"}, "no tools are offered"),
        ({"answers": "[]"}, "an xLAM record needs query (text), answers and tools (JSON lists)"),
    ],
)
def test_xlam_records_that_cannot_be_used_say_why(row, reason):
    assert reasons("xlam", row) == [reason]


# --- APIGen-MT ---


def test_apigen_mt_function_calls_and_observations_make_chains():
    row = {
        "system": "# Harbour rules\nAsk before you book.",
        "tools": json.dumps(
            [schema("find", id="string"), schema("book", required=["id"], id="string", paid="boolean")]
        ),
        "conversations": [
            said("human", "Book a boat."),
            said("gpt", "Which boat, please?"),
            said("human", "The Zwin."),
            said("function_call", '{"name": "find", "arguments": {"id": "Zwin"}}'),
            said("observation", '{"free": true}'),
            said("function_call", '{"name": "book", "arguments": {"id": "Zwin", "paid": false}}'),
            said("observation", "booked"),
            said("gpt", "The Zwin is booked."),
        ],
    }
    asked, chain, report = samples("apigen_mt", row)
    assert asked.kind == "irrelevant" and asked.query == "Book a boat."
    assert chain.kind == "sequential" and chain.responses == ('{"free": true}', "booked")
    assert [m["content"] for m in chain.history] == ["Book a boat.", "Which boat, please?"]
    assert chain.policy == "# Harbour rules\nAsk before you book."
    assert report.kind == "report" and len(report.history) == 7


# --- rlla ---

_INSTRUCTION = """You help.

**Available Tools**
In your response, you can use the following tools:
1. Name: Tide Table
Description: tides
by day
Parameters: {"harbour": {"description": "", "type": "str", "default": ""}, "day": {"description": "", "type": "int, optional"}}

**Steps for Each Turn**
1. Think.
"""


def rlla(dialogue, output):
    return {
        "instruction": _INSTRUCTION,
        "input": f"**Dialogue Records History**\n{dialogue}",
        "output": output,
    }


def test_rlla_history_is_taken_apart_and_only_the_last_turn_makes_a_sample():
    dialogue = (
        "<user> Tide in A? </user>\n\n<think> use it </think>\n<tool_call>\n"
        '{"name": "Tide Table", "parameters": {"harbour": "A"}}\n</tool_call>\n'
        '<obs> [{"name": "Tide Table", "results": 4}] </obs>\n\n<think> say </think>\n<response> 4 m. </response>\n\n'
        "<user> And in B and C? </user>"
    )
    output = (
        '<think> two </think>\n<tool_call>\n{"name": "Tide Table", "parameters": {"harbour": "B"}}\n'
        '{"name": "Tide Table", "parameters": {"harbour": "C", "day": 2}}\n</tool_call>'
    )
    sample = only("rlla", rlla(dialogue, output))
    assert sample.kind == "parallel" and sample.query == "And in B and C?" and sample.policy == "You help."
    assert [m["role"] for m in sample.history] == ["user", "assistant", "tool", "assistant"]
    assert "think" not in json.dumps(sample.history)
    assert sample.tools[0]["function"]["description"] == "tides\nby day"
    same = {
        "prompt": [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": rlla(dialogue, "")["input"]},
        ],
        "reward_model": {"ground_truth": output, "style": "rule"},
    }
    assert only("rlla", same) == sample


def test_an_rlla_report_does_not_make_its_calls_a_sample_again():
    made = '<tool_call>\n{"name": "Tide Table", "parameters": {"harbour": "A"}}\n</tool_call>'
    dialogue = f"<user> Tide? </user>\n{made}\n<obs> 4 </obs>"
    report = only("rlla", rlla(dialogue, "<think> say </think>\n<response> 4 m. </response>"))
    assert report.kind == "report" and report.answer == "4 m." and report.history[-1]["role"] == "tool"


@pytest.mark.parametrize(
    ("name", "records"), [("rlla_sft.json", 400), ("rlla_test.parquet", 80)]
)  # fmt: skip
def test_every_real_rlla_record_is_a_sample_or_counted_and_its_calls_survive_all_formats(
    real_data, name, records
):
    found, rejections = read_seeds([f"rlla:{real_data / 'toolrl' / name}"])
    assert len(found) + rejections.total == records
    assert len(found) > 0.9 * records
    counts = Counter(sample.kind for sample in found)
    assert set(counts) == {"sequential", "parallel", "irrelevant", "report"}
    for sample in found:
        assert bool(sample.reference) == (sample.kind in ("sequential", "parallel"))
        for call_format in CALL_FORMATS:
            written = render_calls(sample.reference, call_format)
            assert calls_equal(parse_calls(written, call_format), sample.reference)


# --- our own JSONL ---


def test_a_plain_seed_line_is_taken_as_it_stands():
    row = {
        "policy": "Be brief.",
        "tools": [schema("tide", harbour="string")],
        "history": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "query": "Tide in A, then in B?",
        "reference": [{"name": "tide", "arguments": {"harbour": name}} for name in "AB"],
        "responses": ["4", "5"],
        "kind": "sequential",
    }
    sample = only("jsonl", row)
    assert sample.kind == "sequential" and sample.responses == ("4", "5") and len(sample.history) == 2
    assert only("jsonl", {**row, "kind": None}).kind == "parallel"
    assert reasons("jsonl", {**row, "responses": ["4"]}) == [
        "another number of responses than of reference calls"
    ]
    assert reasons("jsonl", {**row, "kind": "chain"})[0].startswith("kind must be one of sequential")
    assert reasons("jsonl", {"text": "?"}) == ["unknown format with fields text"]


_SEED = {
    "tools": [schema("tide", harbour="string")],
    "query": "Tide in A?",
    "reference": [{"name": "tide", "arguments": {"harbour": "A"}}],
}


def called_before(arguments):
    asking = {"role": "assistant", "tool_calls": [{"function": {"name": "tide", "arguments": arguments}}]}
    return [{"role": "user", "content": "Hi"}, asking, {"role": "tool", "content": "4"}]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"history": 5}, "history must be a list of messages"),
        ({"history": "Hi"}, "history must be a list of messages"),
        ({"responses": 5}, "responses must be a list of texts"),
        ({"responses": "5"}, "responses must be a list of texts"),
        ({"responses": [5]}, "responses must be a list of texts"),
        ({"answer": 5}, "answer must be text"),
        (
            {"policy": "Be brief.", "history": [{"role": "system", "content": "Be kind."}]},
            "a policy and a system message in the history: keep one of them",
        ),
        (
            {"history": [*called_before({}), {"role": "system", "content": "Be kind."}]},
            "a system message after the first message",
        ),
    ],
)
def test_a_plain_seed_with_a_field_of_another_type_is_counted(changes, reason):
    assert reasons("jsonl", {**_SEED, **changes}) == [reason]


def test_history_with_calls_that_no_format_can_carry_is_counted():
    for arguments in ({"harbour": float("nan")}, {"harbour": nested(400)}):
        assert len(reasons("jsonl", {**_SEED, "history": called_before(arguments)})) == 1
    many = called_before({})
    many[1]["tool_calls"] *= 300
    assert reasons("jsonl", {**_SEED, "history": many}) == ["calls that no call format can carry"]
    assert only("jsonl", {**_SEED, "history": called_before({}) * 300})  # in many messages they may be many


def test_a_system_message_at_the_start_of_a_plain_seeds_history_is_its_policy():
    spoken = called_before({"harbour": "B"})
    sample = only("jsonl", {**_SEED, "history": [{"role": "system", "content": "Be kind.\n"}, *spoken]})
    assert sample == only("jsonl", {**_SEED, "policy": "Be kind.", "history": spoken})
    assert sample.policy == "Be kind." and sample.history[0]["role"] == "user"


def test_a_plain_seed_may_name_the_task_that_execute_acts_in(monkeypatch):
    class Harbour:
        def _load_scenario(self, scenario):
            self.tides = scenario["tides"]

        def tide(self, harbour):
            return self.tides[harbour]

    class Tide:
        @staticmethod
        def invoke(data, harbour):
            return data[harbour]

        @staticmethod
        def get_info():
            return {"type": "function", "function": {"name": "tide"}}

    modules = {
        "bfcl_eval.constants.executable_backend_config": {
            "CLASS_FILE_PATH_MAPPING": {"Harbour": "stub_harbour"},
            "STATELESS_CLASSES": [],
        },
        "stub_harbour": {"Harbour": Harbour},
        "tau_bench.envs.retail.data": {"load_data": lambda: {"A": "5 m"}},
        "tau_bench.envs.retail.tools": {"ALL_TOOLS": [Tide]},
    }
    for name, contents in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        vars(sys.modules[name]).update(contents)
    state = {"involved_classes": ["Harbour"], "initial_config": {"Harbour": {"tides": {"A": "4 m"}}}}
    for task, answer in (({"bfcl": state}, "4 m"), ({"tau": {"domain": "retail"}}, "5 m")):
        sample = only("jsonl", {**_SEED, "task": task})
        assert respond(start_environment(sample, "execute"), sample.reference) == (answer,)
    broken = only("jsonl", {**_SEED, "task": {"bfcl": {**state, "initial_config": {"Harbour": {}}}}})
    with pytest.raises(Rejected, match=r"act: Harbour cannot load the task's initial_config \(KeyError\)"):
        start_environment(broken, "execute")


@pytest.mark.parametrize(
    "task",
    [
        5,
        {},
        {"bfcl": {}},
        {"bfcl": {"involved_classes": "MathAPI"}},
        {"bfcl": {"involved_classes": [1]}},
        {"bfcl": {"involved_classes": ["MathAPI"], "initial_config": {"MathAPI": 1}}},
        {"bfcl": {"involved_classes": ["MathAPI"], "initial_state": {}}},
        {"tau": {"domain": 5}},
        {"tau": {"domain": "retail"}, "bfcl": {"involved_classes": ["MathAPI"]}},
    ],
)
def test_a_task_that_is_none_is_counted(task):
    (reason,) = reasons("jsonl", {**_SEED, "task": task})
    assert reason.startswith('task must be {"bfcl"')


def test_a_conversation_line_cannot_name_a_task():
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Which one?"}]}
    (reason,) = reasons("jsonl", {**row, "tools": _SEED["tools"], "task": {"tau": {"domain": "retail"}}})
    assert reason.startswith("a task on a conversation")


@pytest.mark.parametrize("arguments", ['{"x": NaN}', '{"x": ' + "[" * 400 + "]" * 400 + "}"])
def test_a_label_that_no_call_format_can_carry_is_named_by_file_and_line(tmp_path, arguments):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "a", "calls": [{"name": "f", "arguments": ' + arguments + "}]}\n")
    with pytest.raises(UserError, match=r"labels\.jsonl:1: calls that no call format can carry"):
        read_labels(str(path))


@pytest.mark.parametrize("call_format", [*CALL_FORMATS, "tool_calls"])
def test_a_conversation_line_is_read_in_every_call_format(call_format):
    calls = [call("tide", harbour="A]")]
    asking = {"role": "assistant", "content": ""}
    if call_format == "tool_calls":
        asking["tool_calls"] = [{"function": {"name": "tide", "arguments": '{"harbour": "A]"}'}}]
    else:
        asking["content"] = f"<think>\nlook\n</think>\n\n{render_calls(calls, call_format)}"
    answer = "<response>4 m.</response>" if call_format == "tags" else "4 m."
    row = {
        "tools": [schema("tide", harbour="string")],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tide?"},
            asking,
            {"role": "user", "content": "<tool_response>\n4\n</tool_response>"},
            {"role": "assistant", "content": f"<think>\nsay\n</think>\n\n{answer}"},
        ],
    }
    chain, report = samples("jsonl", row)
    assert calls_equal(chain.reference, calls) and chain.responses == ("4",) and chain.policy == "Be brief."
    assert report.kind == "report" and report.answer == "4 m."


def test_chat_without_tools_is_counted():
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Which one?"}]}
    assert reasons("jsonl", row) == ["no tools are offered"]


# --- the tool world ---


def test_tool_world_samples_hold_their_task_and_responses_that_running_it_gives():
    found, rejections = read_seeds(
        ["toolworld:30,seed=1,split=test,subtasks=2-3,kinds=sequential+parallel+irrelevant"]
    )
    assert len(found) + rejections.total == 30
    assert {sample.kind for sample in found} == {"sequential", "parallel", "irrelevant"}
    for sample in found:
        world = ToolWorld()
        world.reset(sample.task)
        assert tuple(world.call(c).content for c in sample.reference) == sample.responses
        assert sample.task.query == sample.query and bool(sample.answer) == (sample.kind == "irrelevant")


def test_reports_of_tool_world_tasks_come_when_asked_for():
    found, _ = read_seeds(["toolworld:12,reports=yes"])
    reports = [sample for sample in found if sample.kind == "report"]
    assert reports and all(sample.answer == sample.task.answer for sample in reports)
    assert all(sample.history[-1]["role"] == "tool" for sample in reports)
    assert not any(sample.kind == "report" for sample in read_seeds(["toolworld:12"])[0])


@pytest.mark.parametrize(
    "spec",
    ["many", "5,seed=x", "5,colour=red", "5,subtasks=3-", "5,subtasks=9", "5,split=dev", "5,reports=1"],
)
def test_a_wrong_tool_world_option_is_named_in_one_line(spec):
    with pytest.raises(UserError) as error:
        read_seeds([f"toolworld:{spec}"])
    assert "\n" not in str(error.value)


# --- all together ---


def test_equal_contents_are_kept_once_and_the_copies_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        xlam([{"name": "tide", "arguments": {"harbour": "A"}}]),
        xlam([]),
        xlam([{"name": "tide", "arguments": {"harbour": "A"}}]),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, rejections = read_seeds([f"xlam:{path}", f"hammer:{path}"], strict=True)
    assert [sample.kind for sample in found] == ["sequential", "irrelevant"]
    assert rejections.counts == {"a copy of an earlier sample": 4}
    assert len({sample.id for sample in found}) == 2 and found[0].origin == f"{path}:1"


def test_the_id_depends_on_the_content_and_on_nothing_else():
    row = xlam([{"name": "tide", "arguments": {"harbour": "A"}}])
    first = only("xlam", row)
    (again,) = parse_seed("hammer", row, "elsewhere:9")
    other = only("xlam", {**row, "query": "Tides?"})
    assert first.id == again.id != other.id


def test_strict_stops_at_the_first_record_that_is_left_out(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": "x"}\nnot json\n')
    assert read_seeds([f"xlam:{path}"])[1].total == 2
    with pytest.raises(UserError, match=r"data\.jsonl:1: answers must be a list"):
        read_seeds([f"xlam:{path}"], strict=True)


@pytest.mark.parametrize(
    "spec", ["data.json", "toolbench:data.json", "xlam:", "xlam:/no/such/file.json", "xlam:file.csv"]
)
def test_a_source_that_does_not_exist_is_named_in_one_line(spec):
    with pytest.raises(UserError) as error:
        read_seeds([spec])
    assert "\n" not in str(error.value)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def test_text_that_cannot_be_written_and_nesting_that_cannot_be_walked_are_counted():
    assert reasons("xlam", xlam([], query="a \ud800 tide")) == ["text with a lone surrogate"]
    nested = []
    for _ in range(3000):
        nested = [nested]
    deep = {"name": "f", "parameters": {"a": {"type": "str", "default": nested}}}
    (reason,) = reasons("xlam", {"query": "x", "answers": [], "tools": [deep]})
    assert reason == "nested too deep"


_VALID = {
    "toolace": toolace(
        "A boat?", '[Tide Table API(harbour="A")]', said("tool", "4"), said("assistant", "4 m.")
    ),
    "xlam": xlam([{"name": "tide", "arguments": {"harbour": "A"}}]),
    "hammer": xlam([]),
    "apigen_mt": {
        "system": "rules",
        "tools": [schema("find", id="string")],
        "conversations": [
            said("human", "Find it."),
            said("function_call", '{"name": "find", "arguments": {"id": "Zwin"}}'),
            said("observation", "found"),
            said("gpt", "Found."),
        ],
    },
    "rlla": rlla(
        "<user> Tide? </user>",
        '<tool_call>\n{"name": "Tide Table", "parameters": {"harbour": "A"}}\n</tool_call>',
    ),
    "jsonl": {
        "tools": [schema("tide", harbour="string")],
        "messages": [
            {"role": "user", "content": "Tide?"},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "tide", "arguments": {"harbour": "A"}}}],
            },
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "4 m."},
        ],
    },
}


def replaced(value, path, new):
    """`value` with the node that `path` leads to put in place of; numbers choose among the children."""
    children = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    if not path or not children:
        return new
    key, inner = children[path[0] % len(children)]
    changed = replaced(inner, path[1:], new)
    return {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]


@pytest.mark.parametrize("source", SOURCES[:-1])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), _ANY)
@settings(max_examples=60, deadline=None)
def test_no_record_whatever_is_wrong_in_it_brings_a_reader_down(source, path, new):
    assert samples(source, _VALID[source])
    for found in parse_seed(source, replaced(_VALID[source], path, new), "file:1"):
        assert isinstance(found, SeedSample | Malformed)


def test_the_worked_example_of_the_page_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "seeds.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    printed = re.search(r"```text\n(.*?)```", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/seeds.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_the_figures_of_the_page_are_those_of_the_real_file(real_data):
    page = (Path(__file__).parents[1] / "docs" / "results" / "data.md").read_text()
    found, left_out = read_seeds([f"rlla:{real_data / 'toolrl' / 'rlla_sft.json'}"])
    counts = Counter(sample.kind for sample in found)
    named = " | ".join(str(counts[kind]) for kind in KINDS[:4])
    assert f"| 400 SFT records | {named} | {len(found)} | {left_out.total} |" in page
