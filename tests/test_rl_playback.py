"""The reward of every shipped config can be reached: references rendered as turns and scored by the run's own reward."""

import json

import pytest

from dcore_jax.config import config_folder, read_config
from dcore_jax.data import Rejections
from dcore_jax.data.notation import template_notation
from dcore_jax.errors import UserError
from dcore_jax.nano import build_tokenizer
from dcore_jax.rewards import open_rewards, tool_reward
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.playback import reachable_prompts, reference_turns
from dcore_jax.rl.prompts import questions_of, read_questions, render_prompts, toolworld_questions
from dcore_jax.rl.rewards import rewards_of
from dcore_jax.rl.sources import run_notation
from dcore_jax.toolworld import generate_tasks
from qwen_tokenizer import TEMPLATE, qwen_tokenizer

TIDE = {"type": "object", "properties": {"harbour": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "tide", "description": "Tides.", "parameters": TIDE}}
CALL = {"name": "tide", "arguments": {"harbour": "Ostend, </tool_call> [x]", "days": 2}}
ASK, NO = {"role": "user", "content": "High tide?"}, {"role": "assistant", "content": "No tool tells that."}
TAGGED = '<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>'
ROWS = [
    {"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": CALL}, {"function": CALL}]}], "tools": [TOOL]},
    {"messages": [ASK, NO], "tools": [TOOL]},
    {"messages": [ASK], "tools": [TOOL], "reference": [{**CALL, "arguments": {}}]},
    {"prompt": [ASK], "reward_model": {"ground_truth": '[tide(harbour="Ostend", days=2), tide()]'}},
    {"prompt": [ASK], "reward_model": {"ground_truth": "[]"}},
    {"prompt": [ASK], "reward_model": {"ground_truth": TAGGED}},
    {"prompt": [ASK], "reward_model": {"ground_truth": "<think> a </think>\n<response> At noon. </response>"}},
]  # fmt: skip


def prompts_of(tokenizer, notation, rows=ROWS):
    rejections = Rejections(strict=True)
    found = [q for i, row in enumerate(rows) for q in questions_of(row, f"rows:{i}", "rows", notation)]
    return render_prompts(found, tokenizer, max_length=4000, rejections=rejections)


@pytest.fixture(scope="module")
def qwen():
    return qwen_tokenizer(TEMPLATE)


@pytest.mark.parametrize("name", sorted(path.stem for path in config_folder().glob("rl_*.yaml")))
def test_the_references_of_every_shipped_config_reach_the_top_of_its_reward(name, qwen, tmp_path):
    config = read_config(RLConfig, config_folder() / f"{name}.yaml")
    nano = "nano" in name
    tokenizer = build_tokenizer(tmp_path) if nano else qwen
    notation = run_notation(config, tokenizer)
    assert notation == ("python" if nano else "qwen")
    rejections = Rejections()
    if nano:
        tasks = generate_tasks(40, seed=1, subtasks=(1, 3))
        questions = toolworld_questions(tasks, notation, reports=True)
        prompts = render_prompts(questions, tokenizer, max_length=4000, rejections=rejections)
    else:
        prompts = prompts_of(tokenizer, notation)
        assert [p.question.call_format for p in prompts] == [
            "qwen",
            "qwen",
            "qwen",
            "python",
            "python",
            "tags",
            "tags",
        ]
    assert reachable_prompts(prompts, tokenizer, rewards_of(config), rejections) == prompts
    assert not rejections.total


def test_a_perfect_native_call_earns_4_of_4_with_the_shipped_config_and_an_unwanted_one_does_not(qwen):
    config = read_config(RLConfig, config_folder() / "rl_qwen3_8b.yaml")
    called, refused = prompts_of(qwen, run_notation(config, qwen))[:2]
    reference = [{"name": "tide", "arguments": {"harbour": "Ostend", "days": 2}}]
    native = f"<think>\nlook\n</think>\n\n<tool_call>\n{json.dumps(reference[0])}\n</tool_call>"
    (preset,) = (reward.name for reward in config.rewards)
    notation = called.question.call_format
    assert tool_reward(native, reference, preset=preset, call_format=notation).total == 4
    assert tool_reward(native, [], preset=preset, call_format=refused.question.call_format).total == 1


def test_toolrls_single_line_break_is_refused_under_a_template_that_writes_two_and_its_other_name_runs(qwen):
    prompts = prompts_of(qwen, "qwen", ROWS[-2:])
    with pytest.raises(
        UserError, match=r"toolrl gives 3 of 4 \(lowest part: format\).*--reward toolrl_any_space"
    ):
        reachable_prompts(prompts, qwen, open_rewards(["toolrl"]), Rejections())
    assert reachable_prompts(prompts, qwen, open_rewards(["toolrl_any_space"]), Rejections()) == prompts


def test_a_reference_that_misses_the_top_alone_is_counted_and_the_run_goes_on(qwen):
    """A reply beside calls has no place in a list of Python calls."""
    both = {"messages": [ASK], "reference": [CALL], "expects_reply": True}
    rows = [*ROWS[3:5], {**both, "messages": [{"role": "system", "content": "Answer as [f(a=1)]."}, ASK]}]
    prompts, rejections = prompts_of(qwen, "qwen", rows), Rejections()
    kept = reachable_prompts(prompts, qwen, open_rewards(["rest_paper"]), rejections)
    assert kept == prompts[:2]
    assert list(rejections.counts) == [
        "a reference that earns 0 of 2 from rest_paper when it is rendered and scored"
    ]


def test_a_template_without_a_place_for_thoughts_is_refused_with_what_to_do(qwen):
    plain = qwen_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}<tool_call>\n"
        '{"name": "{{ m.tool_calls[0].function.name }}", "arguments": {{ m.tool_calls[0].function.arguments | tojson }}}\n'
        "</tool_call>{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    prompts = prompts_of(plain, "qwen", [ROWS[2]])
    with pytest.raises(UserError, match="misses the top of the reward"):
        reachable_prompts(prompts, plain, open_rewards(["dcore_paper"]), Rejections())


def test_reference_turns_continue_their_own_prompt(qwen):
    for prompt in prompts_of(qwen, template_notation(qwen)):
        turns = list(reference_turns(prompt, qwen))
        assert turns and all(turn.startswith("<think>\n") and "<|im_end|>" not in turn for turn in turns)


def test_the_real_toolrl_records_expect_346_calls_and_all_reach_the_top(real_data, qwen):
    for file, calls in (("rlla_sft.json", 346), ("rlla_test.parquet", 71)):
        questions, rejections = read_questions([real_data / "toolrl" / file], "qwen")
        assert sum(bool(question.reference) for question in questions) == calls and not rejections.total
        prompts = render_prompts(questions, qwen, max_length=10_000, rejections=rejections)
        reachable_prompts(prompts, qwen, open_rewards(["dcore_paper"]), rejections)
        assert not rejections.total
