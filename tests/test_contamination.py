"""The guard: a seed that asks what a benchmark asks is left out and counted, whatever the file's form."""

import json
from dataclasses import replace

import pytest

from dcore_jax.data import Rejections, parse_record
from dcore_jax.data.records import without_contaminated
from dcore_jax.distill.contamination import (
    LONG,
    SAME_ITEM,
    SAME_QUERY,
    leave_out_contaminated,
    read_benchmarks,
    reason_of,
)
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.errors import UserError
from dcore_jax.rl.prompts import read_questions

SHORT_QUERY = "When is high tide in Ostend?"
LONG_QUERY = "At which hour is the next high tide in the harbour of Ostend?"
assert len(SHORT_QUERY.split()) < LONG <= len(LONG_QUERY.split())


def tool(name):
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}


def seed(query=SHORT_QUERY, tools=("tide.table",), history=()):
    return SeedSample(
        "", "jsonl", "seeds.jsonl:1", "irrelevant", "", tuple(map(tool, tools)), tuple(history), query, (), ()
    )


def user(text):
    return {"role": "user", "content": text}


def items(query, names=("tide.table",)):
    """One item with this query in every form that is read."""
    functions = [{"name": name, "description": "", "parameters": {}} for name in names]
    bfcl = {
        "id": "simple_0",
        "question": [[{"role": "system", "content": "?"}, user(query)]],
        "function": functions,
    }
    listed = "\n".join(
        f"{i}. Name: {name}\nDescription: d\nParameters: {{}}" for i, name in enumerate(names, 1)
    )
    return {
        "bfcl": bfcl,
        "bfcl one function": {**bfcl, "function": functions[0]},
        "bfcl score": {"id": "simple_0", "valid": False, "prompt": bfcl},
        "bfcl multi-turn": {
            "id": "multi_turn_base_0",
            "question": [[user("Sail out.")], [user(query)]],
            "involved_classes": ["Harbour"],
            "path": [f"Harbour.{name.split('.')[-1]}" for name in names],
        },
        "api-bank": {
            "system": f"**Available Tools**\n{listed}\n",
            "user": f"**Dialogue Records History**\n<user>Hello</user>\n<response>Hi</response>\n<user>{query}</user>",
            "answer": [],
        },
        "chat": {"messages": [user(query)], "tools": [tool(name) for name in names]},
        "query": {"query": query, "tools": functions},
        "bare question": {**bfcl, "question": query},
        "question and function as text": {
            **bfcl,
            "question": json.dumps(bfcl["question"]),
            "function": json.dumps(functions),
        },
        "chat, tools as text": {"messages": [user(query)], "tools": json.dumps(list(map(tool, names)))},
        "corpus.parquet": {
            "messages": json.dumps([user(query)]),
            "tools": json.dumps(list(map(tool, names))),
        },
        "xlam": {"query": query, "answers": "[]", "tools": json.dumps(functions)},
    }


def guard(tmp_path, *rows):
    path = tmp_path / "benchmark.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_benchmarks([path])


@pytest.mark.parametrize("form", items(SHORT_QUERY))
def test_a_seed_with_an_items_query_and_tool_is_found_in_every_form(tmp_path, form):
    name = "table" if form == "bfcl multi-turn" else "tide.table"
    found = guard(tmp_path, items(SHORT_QUERY)[form])
    assert found.items == 1
    assert reason_of(found, seed(tools=("boats", name))) == SAME_ITEM
    assert reason_of(found, seed(query="When is low tide in Ostend?", tools=(name,))) == ""
    assert reason_of(found, seed(tools=("boats",))) == ""


def test_case_punctuation_space_and_width_do_not_hide_a_match(tmp_path):
    found = guard(tmp_path, items("When is high tide in Ostend?")["bfcl"])
    hidden = seed(query="  when is HIGH-tide,\nin Ｏｓｔｅｎｄ", tools=("Tide_Table",))
    assert reason_of(found, hidden) == SAME_ITEM


def test_a_long_query_is_enough_whatever_the_tools_are_called(tmp_path):
    found = guard(tmp_path, items(LONG_QUERY)["bfcl"])
    assert reason_of(found, seed(query=LONG_QUERY, tools=("xZ9",))) == SAME_QUERY
    assert reason_of(found, seed(query=LONG_QUERY, tools=("tide.table",))) == SAME_ITEM


def test_an_earlier_message_of_the_user_counts_as_much_as_the_query(tmp_path):
    found = guard(tmp_path, items(SHORT_QUERY)["bfcl"])
    later = seed(query="Thanks.", history=[user(SHORT_QUERY), {"role": "assistant", "content": "At six."}])
    assert reason_of(found, later) == SAME_ITEM
    assert (
        reason_of(found, seed(query="Thanks.", history=[{"role": "assistant", "content": SHORT_QUERY}])) == ""
    )


def test_what_is_left_out_is_counted_and_the_rest_keeps_its_order(tmp_path):
    found = guard(tmp_path, items(SHORT_QUERY)["bfcl"])
    clean = [replace(seed(query=f"Question {i}"), origin=f"seeds.jsonl:{i}") for i in range(3)]
    rejections = Rejections()
    kept = leave_out_contaminated([clean[0], seed(), *clean[1:], seed()], found, rejections)
    assert kept == clean
    assert rejections.counts == {SAME_ITEM: 2} and rejections.examples == {SAME_ITEM: "seeds.jsonl:1"}


@pytest.mark.parametrize(
    "row",
    [
        {"id": "simple_0", "result": "[f()]"},
        {"question": [[{"role": "system", "content": "x"}]]},
        [1],
        {"messages": []},
        {"messages": SHORT_QUERY},
        {"messages": [SHORT_QUERY]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": SHORT_QUERY}]}]},
        {"query": SHORT_QUERY, "tools": "tide.table"},
        {"query": SHORT_QUERY, "tools": ["tide.table"]},
        {"query": SHORT_QUERY, "tools": [{"name": None}]},
        {"question": SHORT_QUERY, "path": "Harbour.table"},
    ],
)
def test_an_item_that_cannot_be_guarded_against_stops_the_run(tmp_path, row):
    with pytest.raises(UserError, match=r"benchmark\.json:2: not a benchmark item") as error:
        guard(tmp_path, items(SHORT_QUERY)["bfcl"], row)
    assert "\n" not in str(error.value)


def test_the_real_benchmark_items_are_read_and_found_again_and_real_seeds_are_clean(real_data):
    scores = sorted((real_data / "dcore_release" / "Qwen3-8B" / "score").glob("*.json"))
    found = read_benchmarks([real_data / "api_bank" / "level-1.json", *scores])
    assert found.items > 900
    for path in scores:
        for line in path.read_text().splitlines()[1:6]:
            prompt = json.loads(line)["prompt"]
            functions = prompt["function"] if isinstance(prompt["function"], list) else [prompt["function"]]
            text = next(m["content"] for turn in prompt["question"] for m in turn if m["role"] == "user")
            assert (
                reason_of(found, seed(query=text.lower(), tools=[f["name"] for f in functions])) == SAME_ITEM
            )
    samples, rejections = read_seeds([f"rlla:{real_data / 'toolrl' / 'rlla_sft.json'}"])
    before = rejections.total
    assert leave_out_contaminated(samples, found, rejections) == samples and rejections.total == before


def test_records_and_prompts_of_a_known_benchmark_are_refused_for_training_and_readable_without_it(tmp_path):
    """API-Bank's own shape: readable as RL prompts, refused once the guard knows the items."""
    item = {
        "system": "**Available Tools**\n1. Name: Tide Table\nDescription: d\nParameters: {}",
        "user": f"**Dialogue Records History**\n<user> {LONG_QUERY} </user>",
        "answer": [{"name": "Tide Table", "parameters": {}}],
    }
    chat = {
        "messages": [{"role": "user", "content": LONG_QUERY}, {"role": "assistant", "content": "At noon."}]
    }
    other = {
        "messages": [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hello."}]
    }
    (tmp_path / "bench.json").write_text(json.dumps([item]))
    questions, left_out = read_questions([tmp_path / "bench.json"], "qwen")
    assert [q.call_format for q in questions] == ["tags"] and not left_out.total
    guard = read_benchmarks([tmp_path / "bench.json"])
    assert guard.reason_of_messages(questions[0].messages, questions[0].tools) == SAME_ITEM
    rejections = Rejections()
    records = [parse_record(row, origin=f"x:{i}")[0] for i, row in enumerate([chat, other], start=1)]
    kept = list(without_contaminated(records, guard, rejections))
    assert [record.origin for record in kept] == ["x:2"] and rejections.examples == {SAME_QUERY: "x:1"}
