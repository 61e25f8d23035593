"""Acting on tool-world tasks: the reference solves every task, anything else does not."""

from collections.abc import Sequence

import pytest

from dcore_jax.engines.engine import Request, Sample
from dcore_jax.evaluation import accuracy_table, solve, transcript
from dcore_jax.nano import build_tokenizer
from dcore_jax.toolworld import generate_tasks, to_record

# The scripted engine tells tasks apart by their words.
TASKS = list(
    {task.query: task for task in generate_tasks(60, seed=5, split="test", subtasks=(1, 3))}.values()
)[:30]


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
    assistant = [m for m in to_record(task)["messages"] if m["role"] == "assistant"]
    return assistant[turn]["content"]


def test_the_reference_solves_every_task_through_the_tools(tokenizer):
    attempts = solve(TASKS, ScriptedEngine(tokenizer, reference).generate, tokenizer)
    assert [a.task for a in attempts] == TASKS
    assert all(a.solved for a in attempts), next(a for a in attempts if not a.solved)
    assert {a.task.kind for a in attempts} == {"single", "sequential", "parallel", "irrelevant"}
    assert max(len(a.turns) for a in attempts) > 2


def test_the_table_lays_models_side_by_side_by_kind_and_calls(tokenizer):
    whole = solve(TASKS, ScriptedEngine(tokenizer, reference).generate, tokenizer)
    silent = solve(TASKS, ScriptedEngine(tokenizer, lambda task, turn: "no.").generate, tokenizer)
    rows = {
        line[:18].strip(): line[18:].split()
        for line in accuracy_table({"a": silent, "b": whole}).splitlines()
    }
    assert rows["kind         calls"] == ["tasks", "a", "b"]
    irrelevant = sum(not task.reference for task in TASKS)
    long = sum(len(task.reference) >= 3 for task in TASKS)
    assert irrelevant and long
    assert rows["all"] == ["30", f"{irrelevant / 30:.0%}", "100%"]
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
