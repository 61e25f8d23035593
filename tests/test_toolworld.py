"""The tool world: tasks that are what their kind says, splits that never meet, an environment that never raises."""

import copy
import json
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax import toolworld
from dcore_jax.calls import Call, calls_equal, parse_response
from dcore_jax.errors import UserError
from dcore_jax.toolworld import (
    DEFAULT_KINDS,
    REFUSAL,
    Output,
    Plan,
    Step,
    Tool,
    ToolError,
    ToolFamily,
    ToolWorld,
    ToolWorldSpec,
    family,
    family_names,
    generate_tasks,
    get_family,
    is_spec,
    object_schema,
    parse_spec,
    register,
    to_record,
    write_jsonl,
)

VALUE = re.compile(r"\b[a-z]\d\b")
TASKS = generate_tasks(600, seed=7)
SINGLES = generate_tasks(80, seed=7, families=["files", "orders"], kinds=["single"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def of_kind(kind):
    tasks = [task for task in TASKS if task.kind == kind]
    assert len(tasks) > 80
    return tasks


# ---- what a task is ----


def test_every_kind_family_and_number_of_subtasks_occurs():
    seen = Counter((task.family, task.kind, len(task.reference)) for task in TASKS)
    wanted = {("single", 1), ("irrelevant", 0)} | {
        (kind, n) for kind in ("sequential", "parallel") for n in (2, 3, 4, 5)
    }
    assert set(seen) == {(name, *size) for name in family_names() for size in wanted}


def test_reference_calls_in_a_fresh_environment_give_the_recorded_responses():
    world = ToolWorld()
    for task in TASKS:
        world.reset(task)
        assert world.done == (not task.reference)
        for call, response in zip(task.reference, task.responses, strict=True):
            assert not world.done
            assert world.call(call).content == response
            assert isinstance(json.loads(response), dict)
        assert world.done and world.solved
        assert [seen.content for seen in world.observe()] == list(task.responses)


def test_running_a_task_leaves_its_initial_state_alone():
    world = ToolWorld()
    task = next(task for task in TASKS if any(call.name == "move_file" for call in task.reference))
    before = copy.deepcopy(task.initial_state)
    world.reset(task)
    for call in task.reference:
        world.call(call)
    assert task.initial_state == before


def test_sequential_tasks_take_an_argument_from_an_earlier_output_and_not_from_the_query():
    for task in of_kind("sequential"):
        asked = set(VALUE.findall(task.query))
        dependent = 0
        for i, call in enumerate(task.reference):
            earlier = set(VALUE.findall(" ".join(task.responses[:i])))
            for value in call.arguments.values():
                if isinstance(value, str) and value not in asked:
                    assert value in earlier, (task.query, call)
                    dependent += 1
        assert dependent >= 1, task.query


def test_every_argument_of_a_parallel_single_task_is_in_the_query():
    for task in of_kind("parallel") + of_kind("single"):
        words = re.findall(r"\w+", task.query)
        for call in task.reference:
            assert all(str(value) in words for value in call.arguments.values())


def test_parallel_calls_answer_the_same_in_any_order():
    for task in of_kind("parallel"):
        world = ToolWorld()
        world.reset(task)
        backwards = [world.call(call).content for call in reversed(task.reference)]
        assert backwards[::-1] == list(task.responses)
        assert world.done


def test_irrelevant_tasks_make_no_call_and_ask_for_what_no_plan_of_the_family_serves():
    for task in of_kind("irrelevant"):
        assert task.reference == task.responses == task.subtasks == task.turns == ()
        assert task.initial_state == task.final_state and task.answer == REFUSAL
        served = [wording for plan in get_family(task.family).plans for wording in plan.requests]
        assert not any(re.fullmatch(re.sub(r"\{\w+\}", r"\\w+", wording), task.query) for wording in served)


def test_subtasks_are_one_per_call_and_leak_no_value_that_only_the_reference_knows():
    for task in TASKS:
        assert len(task.subtasks) == len(task.reference) == len(task.responses)
        assert set(VALUE.findall(" ".join(task.subtasks))) <= set(VALUE.findall(task.query))


def test_subtasks_refer_to_steps_that_come_before():
    referred = 0
    for task in TASKS:
        for i, subtask in enumerate(task.subtasks):
            for number in re.findall(r"step (\d)", subtask):
                assert 1 <= int(number) <= i
                referred += 1
    assert referred > 200


def test_tools_are_openai_functions_and_the_reference_fits_their_schemas():
    jsonschema_types = {"string": str, "integer": int}
    for task in TASKS[:100]:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in task.tools}
        assert 4 <= len(schemas) <= 6 and all(tool["type"] == "function" for tool in task.tools)
        for call in task.reference:
            properties = schemas[call.name]["properties"]
            assert list(call.arguments) == list(properties) == schemas[call.name]["required"]
            for name, value in call.arguments.items():
                assert type(value) is jsonschema_types[properties[name]["type"]]


# ---- seeds and splits ----


def test_a_task_depends_on_seed_split_and_index_only():
    whole = generate_tasks(30, seed=3, split="test")
    assert generate_tasks(10, seed=3, split="test", start=20) == whole[20:]
    assert generate_tasks(1, seed=3, split="test", start=5) == whole[5:6]
    assert generate_tasks(30, seed=4, split="test") != whole
    kinds = generate_tasks(9, seed=3, kinds=("parallel", "single"))
    assert kinds == generate_tasks(9, seed=3, kinds=("single", "parallel"))


EVERYTHING = """
from hashlib import sha256
from dcore_jax.toolworld import KINDS, SPLITS, generate_tasks
tasks = [task for split in SPLITS for task in generate_tasks(20, seed=7, split=split, kinds=KINDS)]
tasks += generate_tasks(20, seed=7, kinds=KINDS, distractors=6, history=2, policy=True)
DIGEST = sha256(repr(tasks).encode()).hexdigest()
"""


def test_tasks_are_byte_for_byte_the_same_in_another_process():
    source = str(Path(toolworld.__file__).parents[2])
    out = subprocess.run(
        [sys.executable, "-c", EVERYTHING + "print(DIGEST)"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PATH": "", "PYTHONPATH": source},
    )
    here: dict = {}
    exec(EVERYTHING, here)
    assert out.stdout.strip() == here["DIGEST"]


def test_train_and_test_share_no_item_among_thousands_in_any_wording_or_order():
    train, test = generate_tasks(1500, seed=1), generate_tasks(600, seed=2, split="test")
    assert not {task.query for task in train} & {task.query for task in test}

    def asked(task):
        """What is asked, without its wording: the subtasks, whose order counts for sequential tasks only."""
        if task.kind == "irrelevant":
            return task.query
        return task.subtasks if task.kind == "sequential" else tuple(sorted(task.subtasks))

    assert not {asked(task) for task in train} & {asked(task) for task in test}
    assert len({task.id for task in test}) > 570


def test_equal_ids_are_equal_tasks():
    by_id = {}
    for task in generate_tasks(800, seed=5, kinds=["irrelevant", "single"]):
        assert by_id.setdefault(task.id, task) == task


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split 'dev' is unknown"),
        ({"kinds": ["serial"]}, "kind 'serial' is unknown; the kinds are single"),
        ({"kinds": ["parallel"], "subtasks": (1, 1)}, "kind 'parallel' does not fit"),
        ({"kinds": ["single"], "subtasks": (2, 5)}, "kind 'single' does not fit"),
        ({"subtasks": (0, 2)}, "within 1 to 5"),
        ({"families": ["shop"]}, "'shop' is unknown; the known ones are files, orders, travel"),
        ({"families": ["music"]}, "split 'train' does not draw from family 'music'; choose among files"),
        ({"families": ["bank"], "split": "families"}, "choose among music, recipes"),
        ({"kinds": ["mixed"], "subtasks": (2, 2)}, "kind 'mixed' does not fit"),
        ({"difficulty": (0, 3)}, "difficulty=(0, 3) must be a range within 1 to 5"),
        ({"kinds": ["single"], "difficulty": (2, 3)}, "is never of difficulty=(2, 3)"),
        ({"distractors": 21}, "distractors=21 must be within 0 to 20"),
        ({"history": 4}, "history=4 must be within 0 to 3"),
        ({"families": []}, "families is empty"),
        ({"kinds": []}, "kinds is empty"),
        ({"start": -1}, "must not be negative"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        generate_tasks(1, seed=0, **arguments)
    assert "\n" not in str(caught.value)


def test_the_range_of_subtasks_chooses_the_kinds_that_fit():
    assert {task.kind for task in generate_tasks(60, seed=0, subtasks=(1, 1))} == {"single", "irrelevant"}
    sizes = {
        len(t.reference)
        for t in generate_tasks(60, seed=0, subtasks=(2, 3), kinds=["parallel", "sequential"])
    }
    assert sizes == {2, 3}


# ---- tasks named in one line ----


def test_a_specification_names_the_tasks_that_generate_tasks_makes():
    spec = parse_spec(
        "toolworld:6,seed=3,split=test,subtasks=2-3,kinds=parallel+sequential,families=files,start=4"
    )
    assert spec.tasks() == generate_tasks(
        6,
        seed=3,
        split="test",
        subtasks=(2, 3),
        kinds=["parallel", "sequential"],
        families=["files"],
        start=4,
    )
    assert parse_spec("toolworld:5").tasks() == generate_tasks(5, seed=0)
    assert parse_spec("toolworld:2,subtasks=1").subtasks == (1, 1)


def test_what_a_specification_leaves_out_is_the_callers_default():
    defaults = ToolWorldSpec(512, seed=9, split="test", subtasks=(1, 2), kinds=("single",))
    for text in ("toolworld", "toolworld:"):
        assert parse_spec(text, defaults=defaults) == defaults
    assert parse_spec("toolworld:8,seed=1", defaults=defaults) == replace(defaults, count=8, seed=1)
    assert parse_spec("toolworld:kinds=irrelevant", defaults=defaults) == replace(
        defaults, kinds=("irrelevant",)
    )
    for text in ("toolworld", "toolworld:seed=1"):
        with pytest.raises(UserError, match="no number of tasks"):
            parse_spec(text)


def test_a_caller_takes_the_further_options_that_it_names_and_no_other():
    text = "toolworld:8,lazy=0.5,lessons=30"
    spec = parse_spec(text, extra=("lazy", "lessons"))
    assert (spec.lazy, spec.lessons, spec.reports) == (0.5, 30, False)
    assert parse_spec("toolworld:8,reports=yes", extra=("reports",)).reports
    with pytest.raises(
        UserError, match=r"lazy is no option here; the options are seed, .*policy, reports, as"
    ):
        parse_spec(text, extra=("reports",))


def test_data_that_is_the_tool_world_is_told_from_files():
    assert is_spec("toolworld") and is_spec("toolworld:8,seed=1")
    assert not is_spec("toolworld.jsonl") and not is_spec("data/toolworld") and not is_spec("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toolworlds:5", "does not name tasks of the tool world"),
        ("toolworld:many", "the number of tasks must be a whole number, not 'many'"),
        ("toolworld:5,seed=-1", "seed must be a whole number"),
        ("toolworld:5,colour=red", "unknown option 'colour=red'"),
        ("toolworld:5,seed", "unknown option 'seed'"),
        ("toolworld:5,subtasks=3-", "a range such as 3-5"),
        ("toolworld:5,subtasks=9", "toolworld:5,subtasks=9: .* within 1 to 5"),
        ("toolworld:5,split=dev", "choose one of train, test, families"),
        ("toolworld:5,policy=1", "policy is yes or no"),
        ("toolworld:5,difficulty=high", "difficulty is a number or a range"),
        ("toolworld:5,distractors=-1", "distractors must be a whole number"),
        ("toolworld:5,kinds=single+odd", "'odd' is unknown"),
        ("toolworld:5,families=boats", "'boats' is unknown"),
        ("toolworld:5,reports=1", "reports is yes or no"),
        ("toolworld:5,lazy=half", "a share of the tasks between 0 and 1"),
        ("toolworld:5,lazy=1.5", "lazy=1.5 is a share"),
        ("toolworld:5,lessons=few", "lessons must be a whole number"),
    ],
)
def test_a_wrong_specification_is_named_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_spec(text, extra=("reports", "lazy", "lessons"))
    assert "\n" not in str(error.value)


# ---- the environment ----


def the_single(tool):
    return next(task for task in SINGLES if task.reference[0].name == tool)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(["find_file", "read_file", "write_file", "move_file"]) | st.text(max_size=12),
    arguments=st.dictionaries(
        st.sampled_from(["file", "folder", "text"]) | st.text(max_size=6), JSON_VALUES, max_size=4
    ),
)
def test_a_call_of_any_json_never_raises_and_is_bounded(name, arguments):
    world = ToolWorld(max_chars=300)
    world.reset(the_single("write_file"))
    before = copy.deepcopy(world._state)
    seen = world.call(Call(name, arguments))
    assert len(seen.content) <= 300
    assert isinstance(json.loads(seen.content), dict)
    seen.content.encode("ascii")
    if seen.error is not None:
        assert world._state == before


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (Call("fly", {}), "no tool 'fly'"),
        (Call("set_count", {"order": "z00", "count": 3}), "no order z00"),
        (Call("set_count", {"order": "z00"}), "set_count needs count"),
        (Call("set_count", {"order": "z00", "count": "3"}), "set_count: count must be integer"),
        (Call("set_count", {"order": "z00", "count": True}), "set_count: count must be integer, not boolean"),
        (Call("set_count", {"order": "z00", "count": 3, "x": 1}), "set_count has no parameter 'x'"),
        (Call("find_order", {"user": "z" * 9000}), "arguments of over 4096 characters"),
        (Call("find_order", {"user": float("nan")}), "find_order: user must be string"),
    ],
)
def test_a_bad_call_is_an_observation_that_says_what_is_wrong(call, error):
    world = ToolWorld()
    world.reset(the_single("set_count"))
    seen = world.call(call)
    assert seen.error == error
    assert json.loads(seen.content) == {"error": error}
    assert not world.done


def test_state_changes_are_seen_by_later_calls():
    task = the_single("move_file")
    world = ToolWorld()
    world.reset(task)
    file, folder = task.reference[0].arguments["file"], task.reference[0].arguments["folder"]
    find = Call("find_file", {"folder": folder})
    assert json.loads(world.call(find).content) != {"file": file}
    world.call(task.reference[0])
    assert json.loads(world.call(find).content) == {"file": file}
    world.call(Call("write_file", {"file": file, "text": "hello"}))
    assert json.loads(world.call(Call("read_file", {"file": file})).content) == {"text": "hello"}


def test_a_whole_float_stands_for_an_integer():
    task = the_single("set_count")
    world = ToolWorld()
    world.reset(task)
    arguments = {**task.reference[0].arguments, "count": float(task.reference[0].arguments["count"])}
    assert world.call(Call("set_count", arguments)).error is None
    assert world.solved


def test_the_environment_ends_after_max_calls():
    world = ToolWorld(max_calls=2)
    world.reset(the_single("read_file"))
    world.call(Call("fly", {}))
    assert not world.done
    world.call(Call("fly", {}))
    assert world.done and not world.solved
    assert "no calls left" in world.call(Call("fly", {})).error


def test_a_call_before_the_first_reset_is_a_bug_of_the_caller():
    with pytest.raises(RuntimeError, match="reset"):
        ToolWorld().call(Call("read_file", {"file": "k42"}))


# ---- a family of one's own ----


def echo(state, text):
    if text == "boom":
        state["said"] = "half"
        raise ZeroDivisionError("inside the tool")
    if text == "long":
        return {"text": "x" * 10_000}
    if text == "no":
        raise ToolError("not today")
    state["said"] = text
    return {"text": text + "1"}


SAY = Step("echo", {"text": "text"}, "say {text}")
AGAIN = Step("echo", {"text": Output(0, "text")}, "say the text of step {0}")
ECHO = ToolFamily(
    name="echo",
    tools=(Tool("echo", "Say it.", object_schema(text="string"), echo),),
    plans=(
        Plan(("say {text}",), (SAY,), "{0[text]}"),
        Plan(("say {text} and again",), (SAY, AGAIN), "{1[text]}"),
        Plan(("say {text} and again thrice",), (SAY, AGAIN, AGAIN), "{2[text]}"),
    ),
    foreign=(Plan(("sing {text}",)),),
    values={"text": family.ids("abc")},
    initial_state=lambda rng, wanted: {"said": ""},
)


@pytest.fixture
def with_echo(monkeypatch):
    monkeypatch.setattr(family, "_FAMILIES", dict(family._FAMILIES))
    register(ECHO)


@pytest.mark.usefixtures("with_echo")
def test_a_family_registered_in_one_line_fills_every_kind_and_size():
    tasks = generate_tasks(200, seed=0, families=["echo"])
    assert {task.kind for task in tasks} == set(DEFAULT_KINDS)
    assert {len(task.reference) for task in tasks} == {0, 1, 2, 3, 4, 5}
    with pytest.raises(ValueError, match="already registered"):
        register(ECHO)
    with pytest.raises(ValueError, match="needs plans of 1, 2 and 3 steps"):
        register(replace(ECHO, name="short", plans=ECHO.plans[:2]))
    for split, message in (("wordings", "no third wordings"), ("names", "without a synonym")):
        with pytest.raises(UserError, match=message):
            generate_tasks(1, seed=0, split=split, families=["echo"])
    with pytest.raises(UserError, match="no policies"):
        generate_tasks(1, seed=0, families=["echo"], policy=True)


@pytest.mark.usefixtures("with_echo")
def test_whatever_a_tool_raises_is_an_observation_and_leaves_the_state():
    world = ToolWorld()
    world.reset(generate_tasks(1, seed=0, families=["echo"], kinds=["single"])[0])
    assert (
        world.call(Call("echo", {"text": "boom"})).error == "echo failed: ZeroDivisionError: inside the tool"
    )
    assert world._state == {"said": ""}
    assert world.call(Call("echo", {"text": "no"})).error == "not today"
    assert world.call(Call("echo", {"text": "long"})).error == "echo: output of over 4096 characters"
    assert world.call(Call("echo", {"text": "yes"})).content == '{"text": "yes1"}'


def test_a_draw_with_too_few_values_says_so_instead_of_hanging():
    with pytest.raises(ValueError, match="too few values such as"):
        family.draw_distinct(random.Random(0), family.integers(1, 3), 5)


# ---- records ----


def calls_of(message, call_format):
    if call_format == "qwen" and message.get("tool_calls"):
        return tuple(Call(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"])
    return parse_response(message["content"], call_format).calls


@pytest.mark.parametrize("call_format", ["python", "tags", "qwen"])
def test_a_record_holds_the_reference_and_the_responses(call_format):
    for task in TASKS[:150] + generate_tasks(50, seed=0, kinds=["mixed", "missing"]):
        record = to_record(task, call_format=call_format)
        assert record["messages"][0] == {"role": "user", "content": task.query}
        assert (record["category"], record["id"]) == (task.kind, task.id)
        assert record["tools"] == list(task.tools)
        turns = [message for message in record["messages"] if message["role"] == "assistant"]
        calls = [call for turn in turns for call in calls_of(turn, call_format)]
        assert calls_equal(calls, task.reference)
        tool_messages = [m["content"] for m in record["messages"] if m["role"] == "tool"]
        assert tool_messages == list(task.responses)
        assert [len(calls_of(turn, call_format)) for turn in turns] == [*map(len, task.turns), 0]
        assert parse_response(turns[-1]["content"], call_format).reply == task.answer
        assert all(re.match(r"<think>\n[^<]+\n</think>\n\n", turn["content"]) for turn in turns)


def test_a_record_without_thinking_holds_no_think_tag():
    assert "think>" not in json.dumps([to_record(task, thinking=False) for task in TASKS[:50]])


def test_write_jsonl_writes_all_records_or_nothing(tmp_path):
    path = tmp_path / "new" / "tasks.jsonl"
    assert write_jsonl(path, TASKS[:20]) == 20
    assert [json.loads(line) for line in path.read_text().splitlines()] == [to_record(t) for t in TASKS[:20]]

    def broken():
        yield TASKS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(tmp_path / "half.jsonl", broken())
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert [p.name for p in path.parent.iterdir()] == ["tasks.jsonl"]


def test_the_worked_example_of_the_docs_prints_what_the_docs_say(capsys):
    page = (Path(__file__).parents[1] / "docs" / "toolworld.md").read_text(encoding="utf-8")
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/toolworld.md", "exec"), {})
    assert capsys.readouterr().out == printed
