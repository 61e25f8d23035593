"""The base that travels with the package, and what is written of the stages that start from it."""

import json
import re

import numpy as np
import pytest

from dcore_jax import load_hf
from dcore_jax.calls import Call, parse_response
from dcore_jax.config import find_config, read_config
from dcore_jax.evaluation import attempt_tasks
from dcore_jax.evaluation.stages import count_stages, write_stages
from dcore_jax.evaluation.toolworld import Attempt
from dcore_jax.nano.copying import COPYING_LESSONS, copying_records
from dcore_jax.nano.plans import PLAN_LESSONS, plan_records
from dcore_jax.sft import SFTConfig
from dcore_jax.toolworld import generate_tasks
from dcore_jax.weights import local_folder

BASE = local_folder("nano-base")


def test_transformers_loads_it_and_computes_the_same():
    import torch
    import transformers

    assert sum(path.stat().st_size for path in BASE.iterdir()) < 12e6
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    reference = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    fields = json.loads((BASE / "config.json").read_text())
    nano = read_config(SFTConfig, find_config("base_nano")).nano
    assert (fields["hidden_size"], fields["num_hidden_layers"]) == (nano.hidden, nano.layers)
    tokens = tokenizer.apply_chat_template(
        [{"role": "user", "content": "read file k4"}], add_generation_prompt=True, return_tensors="np"
    )["input_ids"]
    with torch.no_grad():
        expected = reference(torch.tensor(np.asarray(tokens)).long()).logits
    np.testing.assert_allclose(load_hf(BASE)(np.asarray(tokens, np.int32)), expected, atol=1e-4)


@pytest.mark.slow
def test_it_serves_single_requests_and_no_task_of_several_calls():
    single = generate_tasks(40, seed=1, split="test", kinds=["single"])
    several = generate_tasks(
        40, seed=1, split="test", kinds=["sequential", "parallel", "mixed"], subtasks=(2, 5)
    )
    assert sum(attempt.solved for attempt in attempt_tasks(BASE, single)) >= 38
    assert sum(attempt.solved for attempt in attempt_tasks(BASE, several)) <= 2


def test_lessons_of_copying_hold_no_tool_no_thought_and_no_call():
    records = list(copying_records(50, seed=3))
    assert records == list(copying_records(50, seed=3))
    for record in records:
        question, answer = (message["content"] for message in record["messages"])
        assert "tools" not in record and "<" not in question + answer
        assert not parse_response(answer, "python").calls
        values = [word.strip('",.[]').rpartition("=")[2].strip('"') for word in answer.split()]
        assert all(value in question for value in values if value[-1:].isdigit() and len(value) == 2)
    assert len(COPYING_LESSONS) == 5


def test_lessons_of_plans_read_the_lines_in_their_order_and_hold_no_tool_no_thought_and_no_call():
    def values_of(parts):  # of each part; within one a call's arguments may stand in another order
        return [sorted(re.findall(r"\b[a-x]\d\b", part)) for part in parts]

    records = list(plan_records(40, seed=3))
    assert records == list(plan_records(40, seed=3)) and len(PLAN_LESSONS) == 4
    for number, record in enumerate(records):
        question, answer = (message["content"] for message in record["messages"])
        assert "tools" not in record and "<" not in question + answer
        assert not parse_response(answer, "python").calls
        match PLAN_LESSONS[number % len(PLAN_LESSONS)]:
            case "values":
                assert values_of(answer.split(", ")) == values_of(question.split("\n")[1:])
            case "lines_values":
                lines, _, found = answer.rpartition("\n\n")
                assert values_of(found.split(", ")) == values_of(lines.split("\n"))
            case "line":
                assert answer in question
            case "lines_line":
                lines, _, chosen = answer.rpartition("\n\n")
                assert chosen in lines.split("\n")


def test_the_stages_summary_and_page_count_the_same_tasks(tmp_path):
    tasks = generate_tasks(30, seed=0, split="test", kinds=["single", "parallel", "mixed"], subtasks=(1, 5))

    def attempt(task, right):
        calls = task.reference if right else (Call("nothing", {}),)
        return Attempt(task, ("<think>\nlook\n</think>\n\n[f()]",), tuple(calls), None)

    before = [attempt(task, len(task.reference) == 1) for task in tasks]
    after = [attempt(task, task.kind != "mixed") for task in tasks]
    stages = {"base": before, "self-distilled": before, "RL": after}
    counts = count_stages(stages)
    assert counts["composed"]["base"].part == 0 and counts["composed"]["RL"].part > 0
    assert counts["mixed"]["RL"].part == 0 and "sequential" not in counts
    page = write_stages(tmp_path, stages, {"base": 0.0, "all": 12.5}, model="nano-base")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seconds"] == 12.5 and list(summary["stages"]) == ["base", "self_distilled", "rl"]
    assert summary["stages"]["rl"]["all"] == {
        "solved": sum(task.kind != "mixed" for task in tasks),
        "tasks": 30,
        "accuracy": sum(task.kind != "mixed" for task in tasks) / 30,
    }
    text = page.read_text()
    assert tasks[next(i for i, t in enumerate(tasks) if t.kind == "parallel")].query in text
