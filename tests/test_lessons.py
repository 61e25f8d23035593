"""What the nano base is taught: one subtask at a time, and decompositions of shown references."""

import json

import pytest

from dcore_jax import UserError
from dcore_jax.calls import calls_equal, parse_response
from dcore_jax.nano import embedded_data
from dcore_jax.nano.lessons import decomposition_record, subtask_record
from dcore_jax.rewards.dcore import follows_format
from dcore_jax.toolworld import ToolWorld, generate_tasks

TASKS = generate_tasks(40, seed=3, kinds=["sequential", "parallel"], subtasks=(2, 5))


def said(record: dict, role: str) -> list[str]:
    return [message["content"] for message in record["messages"] if message["role"] == role]


def test_each_subtask_is_a_request_of_its_own_that_one_call_answers():
    for task in TASKS:
        record = subtask_record(task)
        assert said(record, "user") == list(task.subtasks)
        turns = said(record, "assistant")
        assert all(follows_format(turn) for turn in turns)
        calls = [parse_response(turn, "python").calls for turn in turns]
        assert all(len(found) == 1 for found in calls)
        assert calls_equal([found[0] for found in calls], task.reference)
        assert task.query not in json.dumps(record["messages"])


def test_a_subtasks_thought_names_every_value_that_its_call_holds():
    for task in TASKS:
        for turn, call in zip(said(subtask_record(task), "assistant"), task.reference, strict=True):
            thought = turn.split("</think>")[0]
            assert all(str(value) in thought for value in call.arguments.values())


def test_the_responses_of_subtasks_are_what_the_world_answers():
    for task in TASKS[:10]:
        world = ToolWorld()
        world.reset(task)
        answers = [world.call(call).content for call in task.reference]
        assert said(subtask_record(task), "tool") == answers[:-1]


def test_a_decomposition_lists_the_subtasks_in_order_and_leaks_no_looked_up_value():
    for task in TASKS:
        shown = decomposition_record(task)
        steps = json.loads(said(shown, "assistant")[0])
        assert [step["description"] for step in steps] == list(task.subtasks)
        assert [(step["step"], step["index"]) for step in steps] == [
            (i + 1, [i]) for i in range(len(task.subtasks))
        ]
        request = said(shown, "user")[0]
        assert task.query in request and all(call.name + "(" in request for call in task.reference)
        alone = said(decomposition_record(task, reference=False), "user")[0]
        assert task.query in alone and "(" not in alone
        looked_up = [v for c in task.reference for v in map(str, c.arguments.values()) if v not in task.query]
        assert not any(
            value in step["description"] for step in steps for value in looked_up if len(value) > 1
        )


def test_an_irrelevant_task_has_no_subtasks_to_teach():
    task = generate_tasks(1, seed=0, kinds=["irrelevant"])[0]
    with pytest.raises(ValueError, match="has no subtasks"):
        subtask_record(task)


def test_the_embedded_data_teach_lessons_besides_whole_tasks_of_the_kinds_asked_for(tmp_path):
    spec = "toolworld:6,subtasks=1,kinds=single+irrelevant,lessons=4"
    path = embedded_data(tmp_path, spec, seed=0)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["category"] for r in records[6:]] == [
        *["decompositions", "subtasks", "decompositions"] * 2,
        "decompositions",
    ]
    assert {r["category"] for r in records[:6]} <= {"single", "irrelevant"}
    assert embedded_data(tmp_path, spec, seed=0) == path
    assert embedded_data(tmp_path, "toolworld:6,lessons=3", seed=0) != path


def test_a_share_of_the_tasks_is_refused_where_lazy_demonstrations_are_asked_for(tmp_path):
    for lazy, wanted in ((0.25, 5), (0.5, 10), (1.0, 20)):
        spec = f"toolworld:20,subtasks=1,kinds=single+irrelevant,lazy={lazy}"
        rows = embedded_data(tmp_path, spec, seed=0).read_text().splitlines()
        refused = [row for row in map(json.loads, rows) if row["category"] == "lazy"]
        assert len(refused) == wanted
        for row in refused:
            (turn,) = said(row, "assistant")
            assert follows_format(turn) and parse_response(turn, "python").calls == ()
    with pytest.raises(UserError, match=r"lazy=2 is a share"):
        embedded_data(tmp_path, "toolworld:20,lazy=2", seed=0)
