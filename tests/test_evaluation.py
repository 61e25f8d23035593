"""Acting on tool-world tasks: the reference solves every task, anything else does not."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from dcore_jax.engines.engine import Request, Sample
from dcore_jax.evaluation import Attempt, accuracy_table, solve, transcript
from dcore_jax.nano import build_tokenizer
from dcore_jax.toolworld import KINDS, generate_tasks, to_record

# The scripted engine tells tasks apart by their words.
TASKS = list(
    {
        task.query: task
        for options in ({}, {"kinds": ["mixed", "missing"], "history": 1, "policy": True, "distractors": 3})
        for task in generate_tasks(30, seed=5, split="test", subtasks=(1, 3), **options)
    }.values()
)[10:40]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class ScriptedEngine:
    """Answers each turn of each task with what `script(task, turn)` says; stands in for a model, and says so."""

    def __init__(self, tokenizer, script, stop=True):
        self.tokenizer, self.script, self.stop, self.turns = tokenizer, script, stop, {}

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        samples = []
        for request in requests:
            text = self.tokenizer.decode(request.prompt_ids)
            task = next(t for t in TASKS if f"\n{t.query}<|im_end|>" in text)
            turn = self.turns.get(task.id, 0)
            self.turns[task.id] = turn + 1
            ids = tuple(self.tokenizer(self.script(task, turn), add_special_tokens=False)["input_ids"])
            ids = (*ids, self.tokenizer.eos_token_id) if self.stop else ids
            reason = "stop" if self.stop else "length"
            samples.append(Sample(request.id, request.prompt_ids, ids, (0.0,) * len(ids), reason, 0))
        return samples


def reference(task, turn):
    assistant = [m for m in to_record(task)["messages"] if m["role"] == "assistant" and "weight" not in m]
    return assistant[turn]["content"]


def test_the_reference_solves_every_task_through_the_tools(tokenizer):
    attempts = solve(TASKS, ScriptedEngine(tokenizer, reference).generate, tokenizer)
    assert [a.task for a in attempts] == TASKS
    assert all(a.solved for a in attempts), next(a for a in attempts if not a.solved)
    assert {a.task.kind for a in attempts} == set(KINDS)
    assert max(len(a.turns) for a in attempts) > 2


def test_a_task_counts_by_state_where_the_state_and_the_facts_are_those_of_the_reference():
    (task,) = generate_tasks(1, seed=2, kinds=["sequential"], subtasks=(2, 2), families=["files"])
    whole = Attempt(task, (), task.reference, None, task.final_state, task.answer)
    assert whole.solved and whole.solved_by_state
    other_way = replace(whole, calls=(*task.reference, task.reference[0]), reply=f"done: {task.answer}")
    assert not other_way.solved and other_way.solved_by_state
    assert not replace(whole, reply="done.").solved_by_state
    assert not replace(whole, final_state=None).solved_by_state
    assert not replace(whole, error="the turn did not end").solved_by_state


def test_a_mixed_task_takes_the_calls_of_a_turn_in_any_order_and_its_turns_in_theirs():
    (task,) = generate_tasks(1, seed=2, kinds=["mixed"], subtasks=(3, 3))
    first, second, last = task.reference
    assert Attempt(task, (), (second, first, last), None).solved
    assert not Attempt(task, (), (last, first, second), None).solved
    assert not Attempt(task, (), (first, second), None).solved


def test_the_table_lays_models_side_by_side_by_kind_and_calls(tokenizer):
    whole = solve(TASKS, ScriptedEngine(tokenizer, reference).generate, tokenizer)
    silent = solve(TASKS, ScriptedEngine(tokenizer, lambda task, turn: "no.").generate, tokenizer)
    rows = {
        line[:18].strip(): line[18:].split()
        for line in accuracy_table({"a": silent, "b": whole}).splitlines()
    }
    assert rows["kind         calls"] == ["tasks", "a", "b"]
    uncalled = sum(not task.reference for task in TASKS)
    irrelevant = sum(task.kind == "irrelevant" for task in TASKS)
    long = sum(len(task.reference) >= 3 for task in TASKS)
    assert irrelevant and uncalled > irrelevant and long
    assert rows["all, by state"] == ["30", "0%", "100%"]  # "no." is not the refusal
    assert rows["all"] == ["30", f"{uncalled / 30:.0%}", "100%"]
    assert rows["3 or more calls"] == [str(long), "0%", "100%"]
    assert rows["irrelevant       0"] == [str(irrelevant), "100%", "100%"]
    text = transcript(next(a for a in whole if a.task.kind == "sequential"))
    assert text.count("answered  <think>") > 2 and "wanted    " in text


def test_what_is_not_the_reference_does_not_solve(tokenizer):
    def solved(script, **options):
        return [
            a.solved for a in solve(TASKS, ScriptedEngine(tokenizer, script, **options).generate, tokenizer)
        ]

    wants_calls = [bool(task.reference) for task in TASKS]
    assert solved(lambda task, turn: "nothing to do.") == [not wanted for wanted in wants_calls]
    assert not any(solved(lambda task, turn: "<think>\nfor ever"))
    assert not any(solved(lambda task, turn: "[broken(]"))
    assert not any(solved(reference, stop=False))
    again = solve(
        TASKS,
        ScriptedEngine(tokenizer, lambda task, turn: "[no_such_tool()]").generate,
        tokenizer,
        max_turns=3,
    )
    assert {(a.error, len(a.turns)) for a in again} == {("too many turns", 3)}
