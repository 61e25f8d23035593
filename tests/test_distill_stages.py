"""The stages of self-distillation, each alone: what they ask, how strictly they read, what they compose."""

import importlib.util
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcore_jax import UserError
from dcore_jax.calls import CALL_FORMATS, Call, parse_response
from dcore_jax.data.records import parse_record
from dcore_jax.distill import compose
from dcore_jax.distill.act import (
    ReplayEnvironment,
    TimeLimitedEnvironment,
    recorded_responses,
    start_environment,
)
from dcore_jax.distill.adapters import BFCLTask, TauTask, adapter_for
from dcore_jax.distill.ask import Answer, Rejected, request_seed
from dcore_jax.distill.decompose import check_count, check_leaks, decompose_ask, read_subtasks
from dcore_jax.distill.kinds import asks, refuses
from dcore_jax.distill.labels import read_labels
from dcore_jax.distill.reason import SolvedSubtask, parse_solution
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.distill.seeds.toolworld import sample_of
from dcore_jax.distill.templates import Templates
from dcore_jax.distill.verify import verify, verify_no_call
from dcore_jax.nano.lessons import decomposition_record
from dcore_jax.rewards.dcore import follows_format
from dcore_jax.toolworld import Observation, generate_tasks

GOOD = [
    {"step": 1, "description": "find it", "index": [0]},
    {"step": 2, "description": "read it", "index": [1]},
]


def said(text, finish="stop"):
    return Answer(text, finish, 1, 1)


@pytest.fixture(scope="module")
def samples():
    found, _ = read_seeds(["toolworld:60,subtasks=1-4,reports=yes"])
    return found


def of_kind(samples, kind, calls=0):
    return next(sample for sample in samples if sample.kind == kind and len(sample.reference) >= calls)


# --- decompose and count ---


@pytest.mark.parametrize(
    "wrap", ["{}", " {}\n", "```json\n{}\n```", "<think>\nbackwards [1]\n</think>\n\n{}"]
)
def test_a_json_list_is_read_alone_fenced_or_after_a_thought(wrap):
    assert read_subtasks(said(wrap.format(json.dumps(GOOD))), needs_index=True) == ("find it", "read it")


def changed(**fields):
    return json.dumps([GOOD[0], {**GOOD[1], **fields}])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("<think>\nnothing more\n</think>\n", "empty"),
        ("<think>\n[]", "a thought that is not closed"),
        (json.dumps(GOOD)[:-1], "not JSON"),
        ("Here you are: " + json.dumps(GOOD), "not JSON"),
        ("[" * 100_000, "not JSON"),
        (json.dumps(GOOD[0]), "not a JSON list of subtasks"),
        ("[]", "not a JSON list of subtasks"),
        ('["find it"]', "a subtask that is not an object"),
        (changed(step=3), "steps that are not numbered 1, 2, 3"),
        (changed(step=True), "steps that are not numbered 1, 2, 3"),
        (changed(description=" "), "a subtask without a description"),
        (changed(description=7), "a subtask without a description"),
        (changed(description="x" * 2001), "a description of over 2000 characters"),
        (changed(index=1), "a subtask whose index is not a list of numbers"),
        (changed(index=["1"]), "a subtask whose index is not a list of numbers"),
        (changed(index=None), "a subtask whose index is not a list of numbers"),
        (changed(index=[2]), "a subtask whose index names no call"),
        (changed(description="half \ud83d of a pair"), "a description with a lone surrogate"),
        (changed(description="read <|im_end|> it"), "a description with a special token spelled out"),
    ],
)
def test_any_other_decomposition_is_rejected_with_its_reason(text, reason):
    with pytest.raises(Rejected) as rejected:
        read_subtasks(said(text), needs_index=True, calls=2)
    assert (rejected.value.stage, rejected.value.reason, rejected.value.text) == ("decompose", reason, text)


def test_too_many_subtasks_that_number_calls_to_match_are_left_to_the_count_check():
    more = json.dumps([*GOOD, {"step": 3, "description": "read it again", "index": [2]}])
    assert len(read_subtasks(said(more), needs_index=True, calls=2)) == 3


def test_an_answer_of_blanks_between_fences_is_read_in_linear_time():
    start = time.process_time()
    for text in ("```" + "\n" * 30_000 + "x", "```json" + " " * 30_000 + "```", "`" * 30_000):
        with pytest.raises(Rejected, match="not JSON"):
            read_subtasks(said(text), needs_index=True)
    assert time.process_time() - start < 1.0


def test_an_index_is_asked_for_only_where_the_reference_was_shown():
    bare = json.dumps([{"step": 1, "description": "find it"}])
    assert read_subtasks(said(bare), needs_index=False) == ("find it",)
    with pytest.raises(Rejected, match="index"):
        read_subtasks(said(bare), needs_index=True)


@settings(max_examples=200, deadline=None)
@given(
    st.text()
    | st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    ).map(json.dumps)
)
def test_whatever_a_model_says_gives_subtasks_or_a_rejection(text):
    try:
        assert all(read_subtasks(said(text), needs_index=True))
    except Rejected as rejected:
        if rejected.stage != "decompose":
            raise


def test_cut_off_and_overlong_answers_have_reasons_of_their_own():
    with pytest.raises(Rejected, match="cut off at the token limit"):
        read_subtasks(said(json.dumps(GOOD), "length"), needs_index=True)
    with pytest.raises(Rejected, match="longer than the engine's longest sequence"):
        read_subtasks(said("", "overlong"), needs_index=True)


def test_the_number_of_subtasks_must_be_the_number_of_calls():
    check_count(["a", "b"], 2, said(""))
    for subtasks, reason in ((["a"], "fewer"), (["a", "b", "c"], "more")):
        with pytest.raises(Rejected, match=f"count: {reason} subtasks than reference calls"):
            check_count(subtasks, 2, said(""))


def test_a_value_that_only_the_reference_knows_may_not_stand_in_a_description(samples):
    sample = of_kind(samples, "sequential", calls=2)
    hidden = next(
        value for value in sample.reference[-1].arguments.values() if str(value) not in sample.query
    )
    check_leaks(sample.task.subtasks, sample, sample.reference, said(""))
    with pytest.raises(Rejected, match="leaks a value of the reference"):
        check_leaks([*sample.task.subtasks[:-1], f"read {hidden} now"], sample, sample.reference, said(""))
    # As a part of a longer word, or where the request says it, it is no leak.
    check_leaks([f"read x{hidden}"], sample, sample.reference, said(""))
    for call in sample.reference:
        for value in call.arguments.values():
            if str(value) in sample.query:
                check_leaks([f"use {value}"], sample, sample.reference, said(""))


def test_what_the_prompt_shows_is_no_leak_wherever_it_stands(samples):
    sample = of_kind(samples, "sequential")
    reference = (Call("pay", {"amount": 5_000_000, "to": "mira", "unit": "kroner"}),)
    turn = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "find", "arguments": {"who": "Mira"}}}],
    }
    tools = ({"type": "function", "function": {"name": "pay", "parameters": {"enum": ["kroner"]}}},)
    shown = replace(sample, query="pay 5,000,000", history=(turn,), tools=tools)
    check_leaks(["pay 5000000 kroner to Mira"], shown, reference, said(""))
    for hidden in (replace(shown, query="pay"), replace(shown, history=()), replace(shown, tools=())):
        with pytest.raises(Rejected, match="leaks a value of the reference"):
            check_leaks(["pay 5,000,000 kroner to Mira"], hidden, reference, said(""))


def test_the_tool_world_asks_for_a_decomposition_in_the_words_that_its_model_was_taught():
    templates = Templates("nano")
    for task in generate_tasks(20, seed=3, kinds=["sequential", "parallel"]):
        for shown in (True, False):
            taught = decomposition_record(task, reference=shown)
            ask = decompose_ask(
                sample_of(task),
                task.reference if shown else None,
                templates,
                examples=3,
                plain=False,
                attempt=0,
            )
            assert ask.messages[0] == taught["messages"][0]
            assert list(ask.tools) == taught["tools"]
            answer = said(taught["messages"][1]["content"])
            assert read_subtasks(answer, needs_index=True) == task.subtasks


@pytest.mark.parametrize(("kind", "count"), [("sequential", 3), ("parallel", 1)])
def test_the_prompt_shows_the_reference_and_the_examples_of_its_family_only_when_told_to(
    samples, kind, count
):
    sample, templates = of_kind(samples, kind, calls=2), Templates()
    calls = "\n".join(f"{i}: {call.name}(" for i, call in enumerate(sample.reference)).splitlines()
    full = decompose_ask(sample, sample.reference, templates, examples=3, plain=False, attempt=0).messages[0][
        "content"
    ]
    assert all(line in full for line in calls)
    assert full.count("worked example") == count
    bare = decompose_ask(sample, None, templates, examples=0, plain=False, attempt=0).messages[0]["content"]
    assert not any(line in bare for line in calls) and "worked example" not in bare
    unshown = decompose_ask(sample, None, templates, examples=3, plain=False, attempt=0).messages[0][
        "content"
    ]
    assert unshown.count("worked example") == count and "Calls that serve it" not in unshown


def test_seeds_of_questions_differ_and_depend_on_nothing_else():
    keys = [(seed, sample, f"{stage}/{i}/{a}") for seed in (0, 1) for sample in "ab" for stage in ("decompose", "reason")
            for i in (0, 1) for a in (0, 1)]  # fmt: skip
    seeds = [request_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [request_seed(*key) for key in keys]


# --- reason ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("[f()]", "no thought"),
        ("<think>\n\n</think>\n\n[f()]", "no thought"),
        ("<think>\nhm\n</think>\n\nI would call f.", "no call"),
        ("<think>\nhm\n</think>\n\n[f(), g()]", "several calls for one subtask"),
        ("<think>\nhm\n</think>\n\n[f(x)]", "calls that cannot be read: a positional argument"),
        ("<think>\nfor ever and ever", "calls that cannot be read: a thought that is not closed"),
        ("<think>\nhm<|im_end|>\n<|im_start|>assistant\n</think>\n\n[f()]", "a thought with a special token"),
    ],
)
def test_a_subtask_wants_one_thought_and_one_call(text, reason):
    with pytest.raises(Rejected) as rejected:
        parse_solution("find it", said(text), "python")
    assert str(rejected.value).startswith(f"reason: {reason}"[:60])


def test_thought_and_call_are_split_at_the_closing_tag():
    solved = parse_solution("find it", said("<think>\nlook first\n</think>\n\n[find(name='x')]"), "python")
    assert solved[:3] == ("find it", "look first", Call("find", {"name": "x"}))


# --- act ---


def test_replay_gives_the_recorded_responses_in_order_and_then_an_error(samples):
    sample = of_kind(samples, "sequential", calls=2)
    environment = start_environment(sample, "replay")
    answers = [environment.call(Call("whatever")) for _ in sample.reference]
    assert tuple(answer.content for answer in answers) == sample.responses and environment.done
    assert environment.call(Call("whatever")).error and len(environment.observe()) == len(answers) + 1


def test_replay_by_content_gives_a_call_the_response_of_its_equal(samples):
    sample = of_kind(samples, "parallel", calls=2)
    environment = ReplayEnvironment(by_content=True)
    environment.reset(sample)
    for i in reversed(range(len(sample.reference))):
        assert environment.call(sample.reference[i]).content == sample.responses[i]
    assert environment.call(sample.reference[0]).error  # each answers once


def test_labels_have_the_recorded_responses_up_to_the_first_call_without_one(samples):
    sample = of_kind(samples, "sequential", calls=3)
    first, second, third = sample.reference[:3]
    other = Call(second.name, {"x": "z99"})
    assert recorded_responses(sample, [second, first]) == (sample.responses[1], sample.responses[0])
    assert recorded_responses(sample, [first, other, third]) == sample.responses[:1]
    assert recorded_responses(replace(sample, responses=()), [first]) == ()


def test_execute_runs_the_tools_of_the_samples_task(samples):
    sample = of_kind(samples, "sequential", calls=2)
    environment = start_environment(sample, "execute")
    assert environment.call(Call("no_such_tool")).error
    assert tuple(environment.call(call).content for call in sample.reference) == sample.responses


def test_execute_needs_a_task(samples):
    with pytest.raises(Rejected, match="act: nothing to execute in"):
        start_environment(replace(samples[0], task=None), "execute")


class Unruly:
    """An environment that does what the call's name says."""

    done = False

    def reset(self, task):
        self.calls = 0

    def call(self, call):
        self.calls += 1
        if call.name == "sleep":
            time.sleep(30)
        elif call.name == "exit":
            raise SystemExit(3)
        elif call.name == "raise":
            raise ValueError("no")
        return Observation("x" * (1000 if call.name == "shout" else 1))

    def observe(self):
        return ()


def test_a_tool_that_raises_exits_or_shouts_is_an_observation():
    inside = Unruly()
    bounded = TimeLimitedEnvironment(inside, seconds=5, max_chars=100)
    bounded.reset(None)
    assert bounded.call(Call("fine")).content == "x"
    assert "ValueError: no" in bounded.call(Call("raise")).error
    assert "SystemExit" in bounded.call(Call("exit")).error
    assert "over 100 characters" in bounded.call(Call("shout")).error
    assert bounded.call(Call("fine")).error is None and not bounded.done
    assert [seen.error is None for seen in bounded.observe()] == [True, False, False, False, True]


def test_a_tool_that_does_not_come_back_is_left_behind():
    inside = Unruly()
    bounded = TimeLimitedEnvironment(inside, seconds=0.05)
    bounded.reset(None)
    start = time.monotonic()
    assert "took longer than 0.05 s" in bounded.call(Call("sleep")).error
    assert "has not come back" in bounded.call(Call("fine")).error
    assert time.monotonic() - start < 5 and inside.calls == 1 and bounded.done


# --- compose ---


def solved_steps(sample):
    return [
        SolvedSubtask(text, f"I look at what {call.name} needs.", call, "")
        for text, call in zip(sample.task.subtasks, sample.reference, strict=True)
    ]


@pytest.mark.parametrize("call_format", CALL_FORMATS)
@pytest.mark.parametrize("folder", ["", "nano"])
def test_the_composed_turn_of_every_kind_satisfies_the_rewards_format_rule(samples, folder, call_format):
    templates = Templates(folder, call_format)
    chain, several = of_kind(samples, "sequential", calls=2), of_kind(samples, "parallel", calls=2)
    steps = solved_steps(chain)
    chained = compose.sequential_turns(chain.query, chain.task.subtasks, steps, templates, call_format)
    turns = [(turn, [call]) for turn, call in zip(chained, chain.reference, strict=True)]
    parallel = compose.parallel_turn(
        several.query, several.task.subtasks, solved_steps(several), templates, call_format
    )
    turns.append((parallel, list(several.reference)))
    turns.append((compose.irrelevant_turn("fly me", "no wings", "I cannot.", templates, call_format), []))
    turns.append((compose.irrelevant_turn("fly me", "", "I cannot.", templates, call_format), []))
    turns.append((compose.report_turn("read it", "It says so.", templates, call_format), []))
    for turn, calls in turns:
        assert follows_format(turn["content"])
        assert list(parse_response(turn["content"], call_format).calls) == calls


def test_a_chains_turn_lists_all_subtasks_recaps_those_solved_and_ends_in_the_thought(samples):
    sample = of_kind(samples, "sequential", calls=3)
    steps = solved_steps(sample)
    templates = Templates()
    turns = compose.sequential_turns(sample.query, sample.task.subtasks, steps, templates, "python")
    first, text = turns[0]["content"], turns[1]["content"]
    assert sample.query in text and all(subtask in text for subtask in sample.task.subtasks)
    assert text.index("Already solved") < text.index("Now subtask 2") < text.index(steps[1].thought)
    assert steps[2].thought not in text
    assert "Already solved" not in first


def test_a_parallel_turn_reflects_twice_and_holds_every_thought(samples):
    sample = of_kind(samples, "parallel", calls=2)
    steps = solved_steps(sample)
    text = compose.parallel_turn(sample.query, sample.task.subtasks, steps, Templates(), "python")["content"]
    places = [
        text.index("None of them needs"),
        *(text.index(step.thought) for step in steps),
        text.index("I have checked"),
    ]
    assert places[0] < min(places[1:-1]) and max(places[1:-1]) < places[-1]
    assert text.count("[") == 1  # all calls in one bracket


@pytest.mark.parametrize(
    ("thought", "answer", "reason"),
    [
        ("done </think> early", "I cannot.", "a thought tag inside the thought"),
        ("fine", "[f()]", "does not read back"),
        ("fine", " ", "nothing to say after the thought"),
        ("fine", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "does not read back"),
        ("hm<|im_end|>\n<|im_start|>user", "I cannot.", "a special token spelled out"),
        ("fine", "I cannot.<｜end▁of▁sentence｜>", "a special token spelled out"),
        ("fine", "I can\ud800not.", "a lone surrogate"),
    ],
)
def test_a_turn_that_would_not_read_back_is_rejected(thought, answer, reason):
    with pytest.raises(Rejected, match=f"compose: .*{reason}"):
        compose.irrelevant_turn("fly me", thought, answer, Templates(), "python")


def test_a_record_is_one_that_sft_reads_with_loss_on_its_last_turn(samples):
    sample = of_kind(samples, "report")
    row = compose.record(sample, 0, [*sample.history, {"role": "assistant", "content": "done"}], sample.tools)
    (record,) = parse_record(json.loads(json.dumps(row)), origin="x:1")
    assert record.loss_turns == "last" and record.tools == sample.tools and record.category == "report"


# --- verify ---

F, G, F2 = Call("f", {"a": 1}), Call("g", {"b": "x"}), Call("f", {"a": 2})


@pytest.mark.parametrize(
    ("kind", "calls", "reference", "reason"),
    [
        ("sequential", [F, G], [F, G], None),
        ("sequential", [G, F], [F, G], "another tool"),
        ("sequential", [F], [F, G], "another number of calls"),
        ("sequential", [F2], [F], "another value"),
        ("sequential", [Call("f", {"c": 1})], [F], "other parameters"),
        ("sequential", [Call("f", {"a": "1"})], [F], "another value"),
        ("parallel", [G, F], [F, G], None),
        ("parallel", [F, F], [F, G], "another tool"),
        ("parallel", [F2, G], [F, G], "other parameters or values"),
        ("mixed", [F, G], [F, G], None),
        ("mixed", [G, F], [F, G], "another tool"),
        ("irrelevant", [], [], None),
        ("missing", [], [], None),
        ("missing", [F], [], "a call where none serves the request"),
        ("irrelevant", [F], [], "a call where none serves the request"),
    ],
)
def test_each_kind_is_verified_in_its_own_way(kind, calls, reference, reason):
    if reason is None:
        verify(kind, calls, reference, "paper")
        return
    with pytest.raises(Rejected) as rejected:
        verify(kind, calls, reference, "paper", "said")
    assert (rejected.value.stage, rejected.value.reason, rejected.value.text) == ("verify", reason, "said")
    if kind in ("sequential", "mixed"):
        with pytest.raises(Rejected):
            verify(kind, calls, reference, "release")
    else:
        verify(kind, calls, reference, "release")  # the release takes the others as they are


OFFERED = ({"type": "function", "function": {"name": "find_file", "parameters": {}}},)


@pytest.mark.parametrize(
    "reply",
    [
        '<tool_call>\n{"name": "find_file", "arguments": {"folder": "a"}}\n</tool_call>',
        '<tool_call>\n{"name": "find_file", "parameters": {"folder": "a"}}\n</tool_call>',
        "<tool_call> that is never closed",
        "[no_such_tool(a=1)]",
        "I call find_file(folder='a') now.",
        'Action: {"name": "find_file", "arguments": {}}',
        "<function=find_file><parameter=folder>a</parameter></function>",
    ],
)
def test_a_call_in_any_notation_is_no_explanation(reply):
    with pytest.raises(Rejected, match="verify: a call in another notation"):
        verify_no_call(reply, OFFERED)


@pytest.mark.parametrize(
    "reply",
    [
        "find_file cannot do this.",
        "The tool `find_file` (the only one) finds files, so no call serves this.",
        "[see above]",
        'No tool has a "name" for this; refind_file(x) is none of them.',
    ],
)
def test_an_explanation_may_name_a_tool(reply):
    verify_no_call(reply, OFFERED)


def test_refusals_and_requests_are_found_in_linear_time():
    start = time.process_time()
    for words in (
        "no tool " * 5_000,
        "no " * 10_000,
        "please " * 5_000,
        "tool " * 10_000,
        "requires the " * 5_000,
    ):
        refuses(words), asks(words)
    assert time.process_time() - start < 2.0
    assert refuses("None of the offered functions fits.") and refuses("A tool for this is missing.")
    assert refuses("It requires the missing-value's parameters.") and asks(
        "Please, if you can, tell me the day."
    )
    assert not refuses("The tool is here.") and not asks("Tell me: yes, please.")


# --- templates and labels ---


def test_a_users_folder_overrides_file_by_file_and_is_part_of_the_digest(tmp_path):
    (tmp_path / "reason.j2").write_text("Please do: {{ description }}\n")
    mine, theirs = Templates(str(tmp_path)), Templates()
    assert mine.render("reason", description="x", query="q") == "Please do: x"
    assert mine.render("refusal") == theirs.render("refusal")
    assert mine.digest() != theirs.digest() == Templates().digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for %}", "reason.j2:1: not a template"),
        ("{{ nothing }}", "reason.j2: cannot be rendered: 'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "reason.j2: cannot be rendered: access to attribute '__class__'"),
        ("{{ 1 / 0 }}", "reason.j2: cannot be rendered: division by zero"),
    ],
)
def test_a_template_of_the_users_that_fails_is_named(tmp_path, text, message):
    (tmp_path / "reason.j2").write_text(text)
    with pytest.raises(UserError, match=r"reason\.j2") as error:
        Templates(str(tmp_path)).render("reason", description="x", query="q")
    assert message in str(error.value)


def test_what_a_model_says_is_never_read_as_a_template():
    text = "{{ 7 * 7 }} {% raw %}"
    assert Templates().render("reason", description=text, query="q") == text


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(UserError, match="nowhere: no such folder of prompts"):
        Templates("nowhere")


def test_a_file_of_labels_is_read_by_id(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"id": "a", "calls": [{"name": "f", "arguments": {"x": 1}}]}) + "\n")
    assert read_labels(str(path)) == {"a": (Call("f", {"x": 1}),)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"calls": []}, 'labels.jsonl:2: a label needs "id"'),
        ({"id": "b", "calls": [{"name": "f"}]}, "labels.jsonl:2: reference call 0 (f)"),
        ({"id": "a", "calls": []}, "labels.jsonl:2: id a is given twice"),
    ],
)
def test_a_label_that_cannot_be_used_is_named(tmp_path, row, message):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"id": "a", "calls": []}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError) as error:
        read_labels(str(path))
    assert message in str(error.value)


# --- other environments, through stand-ins with the packages' documented shape ---


@pytest.fixture
def stub_packages(monkeypatch):
    """Modules that stand in for bfcl-eval and tau_bench, which are not installed here."""

    class Counter:
        def _load_scenario(self, scenario, long_context=False):
            self.count = scenario["count"]

        def add(self, by):
            self.count += by
            return {"count": self.count}

    class Look:
        @staticmethod
        def invoke(data, name):
            data[name] = data.get(name, 0) + 1
            return json.dumps(data)

        @staticmethod
        def get_info():
            return {"type": "function", "function": {"name": "look"}}

    backend = "bfcl_eval.constants.executable_backend_config"
    modules = {
        backend: {"CLASS_FILE_PATH_MAPPING": {"Counter": "stub_counter"}, "STATELESS_CLASSES": []},
        "stub_counter": {"Counter": Counter},
        "tau_bench.envs.retail.data": {"load_data": lambda: {"a": 1}},
        "tau_bench.envs.retail.tools": {"ALL_TOOLS": [Look]},
    }
    for name, contents in modules.items():
        for end in range(name.count(".") + 1):
            parent = ".".join(name.split(".")[: end + 1])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        vars(sys.modules[name]).update(contents)


def test_bfcls_classes_are_called_by_name_each_reset_anew(samples, stub_packages):
    task = BFCLTask(("Counter",), {"Counter": {"count": 1}})
    for _ in range(2):
        environment = start_environment(replace(samples[0], task=task), "execute")
        assert json.loads(environment.call(Call("add", {"by": 2})).content) == {"count": 3}
    assert "no tool '_load_scenario'" in environment.call(Call("_load_scenario", {"scenario": {}})).error
    assert "TypeError" in environment.call(Call("add", {"by": "x"})).error
    assert "TypeError" in environment.call(Call("add", {"to": 1})).error


def test_tau_benchs_tools_share_one_fresh_database(samples, stub_packages):
    environment = start_environment(replace(samples[0], task=TauTask("retail")), "execute")
    environment.call(Call("look", {"name": "a"}))
    assert json.loads(environment.call(Call("look", {"name": "a"})).content) == {"a": 3}


@pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
def test_bfcls_own_classes_act_behind_the_protocol(monkeypatch, tmp_path):
    """The real package: pip install --no-deps bfcl-eval==2026.3.23 mpmath."""
    monkeypatch.setenv("BFCL_PROJECT_ROOT", str(tmp_path))
    file = {"type": "file", "content": "hello"}
    root = {"workspace": {"type": "directory", "contents": {"a.txt": file}}}
    task = BFCLTask(("GorillaFileSystem", "MathAPI"), {"GorillaFileSystem": {"root": root}})
    world = adapter_for(task)
    for _ in range(2):  # a reset is a fresh state
        world.reset(task)
        assert json.loads(world.call(Call("ls", {})).content) == {"current_directory_content": ["a.txt"]}
        assert json.loads(world.call(Call("cat", {"file_name": "a.txt"})).content) == {
            "file_content": "hello"
        }
        assert json.loads(world.call(Call("mean", {"numbers": [1, 2, 6]})).content) == {"result": 3.0}
        world.call(Call("touch", {"file_name": "b"}))
        assert json.loads(world.call(Call("ls", {})).content) == {"current_directory_content": ["a.txt", "b"]}
        assert world.call(Call("_load_scenario", {"scenario": {}})).error == "no tool '_load_scenario'"
        assert "TypeError" in world.call(Call("cat", {"x": 1})).error


@pytest.mark.skipif(importlib.util.find_spec("tau_bench") is None, reason="tau_bench is not installed")
def test_tau_benchs_own_tools_act_behind_the_protocol():
    """The real package, from its repository (github.com/sierra-research/tau-bench), with litellm."""
    order = {"order_id": "#W2974929"}
    for domain, tool in (("retail", "cancel_pending_order"), ("airline", "book_reservation")):
        world = adapter_for(TauTask(domain))
        for _ in range(2):  # a reset is a fresh database
            world.reset(TauTask(domain))
            assert world.call(Call("calculate", {"expression": "2 * 3"})).content == "6.0"
            assert "TypeError" in world.call(Call(tool, {"x": 1})).error
            if domain == "retail":
                assert json.loads(world.call(Call("get_order_details", order)).content)["status"] == "pending"
                world.call(Call(tool, order | {"reason": "no longer needed"}))
                assert (
                    json.loads(world.call(Call("get_order_details", order)).content)["status"] == "cancelled"
                )
    assert world.call(Call("__class__", {})).error == "no tool '__class__'"


def test_a_package_that_is_missing_is_named(samples):
    for task, package in ((BFCLTask(("MathAPI",)), "bfcl-eval"), (TauTask("retail"), "tau_bench")):
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            with pytest.raises(UserError, match=f"install {package}"):
                start_environment(replace(samples[0], task=task), "execute")


def test_the_worked_example_of_the_page_prints_what_the_page_says(capsys):
    page = (Path(__file__).parents[1] / "docs" / "distill.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(compile(code, "docs/distill.md", "exec"), {})
    assert capsys.readouterr().out == re.search(r"```text\n(.*?)```", page, re.DOTALL)[1]
