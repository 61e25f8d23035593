"""What the tool world holds out, and what makes a task harder: splits, mixed and missing tasks, distractors, history, policy."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dcore_jax import toolworld
from dcore_jax.calls import Call
from dcore_jax.toolworld import (
    KINDS,
    SPLITS,
    ToolWorld,
    ToolWorldSpec,
    family_names,
    generate_tasks,
    get_family,
    opening_messages,
    parse_spec,
    to_record,
)
from dcore_jax.toolworld.family import VALUE_LETTERS, is_reserved

VALUE = re.compile(r"\b[a-x]\d\b")
TASKS = generate_tasks(240, seed=1, kinds=KINDS)
HELD_OUT = {split: generate_tasks(150, seed=1, split=split, kinds=KINDS) for split in SPLITS[1:]}
HARD = generate_tasks(150, seed=3, kinds=KINDS, distractors=5, history=2, policy=True)


def of_kind(kind, tasks=TASKS):
    return [task for task in tasks if task.kind == kind]


def plan_patterns(family, seen):
    """The words of each plan, seen and held out, as patterns over queries: (pattern, the plan's first wording)."""
    plans = (*family.plans, *family.foreign)
    for plan in plans:
        for wording in plan.wordings(held_out=not seen):
            known = re.escape(re.sub(r"\{\w+\}", "0", wording)).replace("0", r"\w+")
            yield re.compile(known)


# In a process of its own, without the tests' checks of every annotation, which take longer than the tasks.
SOLVE = """
from dcore_jax.toolworld import KINDS, ToolWorld, generate_tasks
world = ToolWorld()
for options in {options}:
    for task in generate_tasks(seed=9, kinds=KINDS, **options):
        world.reset(task)
        assert [world.call(call).content for call in task.reference] == list(task.responses), task
        assert world.state == task.final_state, task
        assert [i for turn in task.turns for i in turn] == list(range(len(task.reference))), task
"""


def solve_all(*options):
    source = str(Path(toolworld.__file__).parents[2])
    env = {"PATH": "", "PYTHONPATH": source}
    code = SOLVE.format(options=options)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert found.returncode == 0, found.stderr


def test_every_task_is_solved_to_its_final_state():
    hard = {"count": 200, "distractors": 8, "history": 3, "policy": True}
    solve_all({"count": 900}, hard, *({"count": 80, "split": split} for split in SPLITS[1:]))


@pytest.mark.slow
def test_ten_thousand_tasks_are_solved_to_their_final_states():
    solve_all({"count": 10_000})


# ---- splits ----


def asked(task):
    """What is asked without its wording: the calls for tasks that make any, or else the words."""
    calls = [json.dumps([call.name, dict(call.arguments)]) for call in task.reference]
    return tuple(sorted(calls)) if task.kind in ("single", "parallel") else task.query


def test_no_held_out_item_nor_paraphrase_is_in_the_training_split():
    train = generate_tasks(800, seed=5, kinds=KINDS)
    known = {asked(task) for task in train} | {task.query for task in train}
    for split in SPLITS[1:]:
        if split != "names":  # whose calls have other names; its words are test items
            assert not known & {asked(task) for task in HELD_OUT[split]}, split
        assert not known & {task.query for task in HELD_OUT[split]}, split


def test_histories_hold_no_item_of_the_other_side():
    def earlier(split):
        tasks = generate_tasks(60, seed=5, split=split, history=2, families=["files"])
        return {
            json.dumps(message["tool_calls"])
            for task in tasks
            for message in task.history
            if "tool_calls" in message
        }

    train, test = earlier("train"), earlier("test")
    assert len(train) > 60 and len(test) > 30 and not train & test
    singles = generate_tasks(100, seed=6, split="test", kinds=["single"], families=["files"])
    assert not train & {
        json.dumps([{"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}}])
        for task in singles
        for c in task.reference
    }


def test_training_draws_no_held_out_family_name_wording_or_value():
    names = {tool.synonym for name in family_names() for tool in get_family(name).tools}
    held_out = [p for name in family_names() for p in plan_patterns(get_family(name), seen=False)]
    for task in (*TASKS, *HARD):
        assert task.family in family_names() and not get_family(task.family).held_out
        assert not names & {tool["function"]["name"] for tool in task.tools}
        text = json.dumps([task.query, task.initial_state, task.history, task.policy])
        assert not any(map(is_reserved, VALUE.findall(text)))
    for task in of_kind("single") + of_kind("irrelevant"):
        assert not any(pattern.fullmatch(task.query) for pattern in held_out), task.query


def test_each_held_out_split_shows_what_it_is_named_after():
    assert (
        {task.family for task in HELD_OUT["families"]}
        == {"music", "recipes"}
        == set(family_names(held_out=True))
    )
    for task in HELD_OUT["names"]:
        synonyms = {tool.synonym for tool in get_family(task.family).tools}
        assert {tool["function"]["name"] for tool in task.tools} == synonyms
        assert {call.name for call in task.reference} <= synonyms
    seen = {pattern for name in family_names() for pattern in plan_patterns(get_family(name), seen=True)}
    for task in of_kind("single", HELD_OUT["wordings"]):
        assert not any(pattern.fullmatch(task.query) for pattern in seen), task.query
    for task in HELD_OUT["values"]:
        assert all(map(is_reserved, VALUE.findall(json.dumps([task.query, task.initial_state]))))
    assert sum(is_reserved(f"{letter}{digit}") for letter in VALUE_LETTERS for digit in range(10)) == 72


def test_all_wordings_of_all_plans_are_distinct_and_name_the_same_values():
    known = {}
    for name in (*family_names(), *family_names(held_out=True)):
        family = get_family(name)
        for plan in family.plans:
            assert len(plan.requests) == 3 and not (plan.steps and not plan.report)
            for wording in plan.requests:
                assert set(re.findall(r"\{(\w+)\}", wording)) == set(plan.slots), wording
                assert known.setdefault(wording, plan) is plan, wording
        tools = [tool.name for tool in family.tools] + [tool.synonym for tool in family.tools]
        assert len(set(tools)) == len(tools) and not known.keys() & set(tools)
        assert {policy.tool for policy in family.policies} <= {tool.name for tool in family.tools}


# ---- kinds ----


def test_a_mixed_task_first_makes_every_call_whose_inputs_are_known():
    tasks = of_kind("mixed")
    assert len(tasks) > 25
    for task in tasks:
        asked_values = set(re.findall(r"\w+", task.query))
        first, *later = task.turns
        assert len(first) >= 2 and later and all(len(turn) == 1 for turn in later)
        for i in first:
            assert all(str(value) in asked_values for value in task.reference[i].arguments.values())
        for (i,) in later:
            assert any(str(value) not in asked_values for value in task.reference[i].arguments.values())
            assert re.search(r"step \d", task.subtasks[i])


def test_a_mixed_tasks_first_turn_answers_the_same_in_any_order():
    for task in of_kind("mixed"):
        world = ToolWorld()
        world.reset(task)
        for turn in task.turns:
            found = {i: world.call(task.reference[i]).content for i in reversed(turn)}
            assert all(task.responses[i] == found[i] for i in turn)
        assert world.state == task.final_state


def test_a_missing_task_calls_nothing_and_asks_for_what_it_does_not_name():
    tasks = of_kind("missing")
    assert len(tasks) > 25
    for task in tasks:
        (absent,) = re.fullmatch(r"which (\w+)\?", task.answer).groups()
        assert f"some {absent}" in task.query and not task.reference and not task.turns


@pytest.mark.parametrize("call_format", ["python", "tags", "qwen"])
def test_a_mixed_record_has_one_message_per_calling_turn(call_format):
    for task in of_kind("mixed"):
        roles = [message["role"] for message in to_record(task, call_format=call_format)["messages"]]
        wanted = ["user"]
        for turn in task.turns:
            wanted += ["assistant", *["tool"] * len(turn)]
        assert roles == [*wanted, "assistant"]


# ---- what makes a task harder ----


def test_difficulty_counts_calls_and_what_comes_on_top():
    for task in TASKS:
        assert task.difficulty == min(5, max(1, len(task.reference)) + (task.kind in ("missing", "mixed")))
    for task in HARD:
        assert task.difficulty == min(
            5, max(1, len(task.reference)) + (task.kind in ("missing", "mixed")) + 3
        )
    spec = parse_spec("toolworld:40,difficulty=2-3,kinds=single+parallel+missing,distractors=3")
    assert {task.difficulty for task in spec.tasks()} == {2, 3}
    assert {task.kind for task in spec.tasks()} == {
        "single",
        "parallel",
        "missing",
    }


def test_a_specification_reaches_every_option():
    spec = parse_spec("toolworld:5,split=names,distractors=4,difficulty=1-4,history=1,policy=yes")
    assert spec == ToolWorldSpec(5, split="names", distractors=4, difficulty=(1, 4), history=1, policy=True)
    assert spec.tasks() == generate_tasks(
        5, seed=0, split="names", distractors=4, difficulty=(1, 4), history=1, policy=True
    )


def test_distractors_are_tools_of_other_families_that_find_nothing():
    world = ToolWorld()
    for task in HARD[:60]:
        own = {tool.name for tool in get_family(task.family).tools}
        names = [tool["function"]["name"] for tool in task.tools]
        others = [name for name in names if name not in own]
        assert len(others) == 5 and len(set(names)) == len(names) == len(own) + 5
        world.reset(task)
        assert world.call(Call(others[0], {})).error == f"{others[0]} finds nothing here"
        assert world.state == task.initial_state


def test_no_distractor_serves_what_the_family_cannot():
    for task in generate_tasks(60, seed=2, kinds=["irrelevant"], distractors=20):
        offered = {tool["function"]["name"] for tool in task.tools}
        for name in family_names():
            serving = [
                plan.steps[0].tool
                for plan in get_family(name).plans
                if len(plan.steps) == 1
                and any(re.fullmatch(re.sub(r"\{\w+\}", r"\\w+", text), task.query) for text in plan.requests)
            ]
            assert not offered & set(serving)


def test_a_history_is_a_conversation_in_the_same_state():
    for task in HARD:
        roles = [message["role"] for message in task.history]
        assert roles == ["user", "assistant", "tool", "assistant"] * 2
        for user in (message["content"] for message in task.history if message["role"] == "user"):
            assert not set(VALUE.findall(user)) & set(VALUE.findall(task.query))
        messages = opening_messages(task, "python")
        assert messages[0] == {"role": "system", "content": task.policy}
        assert messages[-1] == {"role": "user", "content": task.query}
        assert [m.get("weight") for m in messages if m["role"] == "assistant"] == [0] * 4


def test_a_policy_forbids_one_kind_of_request_and_the_tool_says_so():
    forbidden = [task for task in HARD if task.answer.startswith("the rule says")]
    assert len(forbidden) > 8
    for task in HARD:
        rule = task.initial_state["rule"]
        assert task.policy == f"{rule['text']}." and str(rule["value"]) in rule["text"]
        world = ToolWorld()
        world.reset(task)
        tool = next(tool for tool in get_family(task.family).tools if tool.name == rule["tool"])
        kinds = {"string": "k4", "integer": 1}
        arguments = {name: kinds[p["type"]] for name, p in tool.parameters["properties"].items()}
        error = world.call(Call(rule["tool"], arguments | {rule["argument"]: rule["value"]})).error
        assert error == f"the rule says {rule['text']}" and world.state == task.initial_state
    for task in forbidden:
        assert task.kind == "irrelevant" and not task.reference
        assert (
            task.answer == f"the rule says {task.policy}"
            and task.initial_state["rule"]["value"] in task.query
        )
