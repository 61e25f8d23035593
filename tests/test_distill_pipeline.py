"""Algorithm 1 through the pipeline, with an engine that plays back scripted answers: where paths end, what stays the same."""

import copy
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dcore_jax import UserError
from dcore_jax.calls import CALL_FORMATS, Call, calls_equal, parse_response, render_calls
from dcore_jax.data.records import read_records
from dcore_jax.data.rendering import render
from dcore_jax.distill.algorithm import Method
from dcore_jax.distill.config import MODES, DecomposeSampling, DistillConfig, ReasonSampling
from dcore_jax.distill.corpus import write_corpus
from dcore_jax.distill.journal import Journal, read_outcomes
from dcore_jax.distill.pipeline import run_pipeline
from dcore_jax.distill.sample import KINDS
from dcore_jax.distill.scripted import ScriptedAnswer, ScriptedEngine, perfect_script
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.distill.tally import summarise
from dcore_jax.distill.templates import Templates
from dcore_jax.engines import Sample
from dcore_jax.evaluation.toolworld import solve
from dcore_jax.nano import build_tokenizer
from dcore_jax.rewards.dcore import follows_format
from dcore_jax.toolworld import Observation

NANO = DistillConfig(prompts="nano")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def samples():
    found, _ = read_seeds(
        [
            "toolworld:40,subtasks=1-4,reports=yes",
            "toolworld:8,kinds=mixed+missing,history=1,policy=yes,reports=yes",
        ]
    )
    return found


def go(folder, samples, tokenizer, script, config=NANO, *, labels=None, stopped=lambda: False, **engine):
    """One start of a run: the engine, and the outcomes by sample."""
    player = ScriptedEngine(tokenizer, script, **engine)
    journal = Journal(folder)
    method = Method(config, Templates(config.prompts, config.call_format), labels)
    done = run_pipeline(samples, method, {"model": tokenizer}, {"model": [player]}, journal, stopped=stopped)
    journal.close()
    outcomes = {outcome.sample.id: outcome for outcome in read_outcomes(folder, by_id(samples))}
    assert not done or len(outcomes) == len(samples)
    return player, outcomes


def by_id(samples):
    return {sample.id: sample for sample in samples}


def corpus_bytes(folder, samples):
    records = (record for outcome in read_outcomes(folder, by_id(samples)) for record in outcome.records)
    return write_corpus(records, folder, form="jsonl", seed=0).path.read_bytes()


def chain(samples, calls=2):
    return next(
        sample for sample in samples if sample.kind == "sequential" and len(sample.reference) >= calls
    )


def saying(script, **lines):
    """The script with other answers to some questions, named as stage_subtask_attempt; a missing attempt means every one."""

    def changed(request_id):
        _, stage, subtask, attempt = request_id.rsplit("/", 3)
        known = lines.get(f"{stage}_{subtask}_{attempt}", lines.get(f"{stage}_{subtask}"))
        return script(request_id) if known is None else known

    return changed


# --- the paths of Algorithm 1 ---


@pytest.mark.parametrize("call_format", CALL_FORMATS)
@pytest.mark.parametrize("preset", ["paper", "release"])
@pytest.mark.parametrize("act", ["replay", "execute"])
def test_a_model_that_knows_everything_passes_every_stage(
    tmp_path, samples, tokenizer, preset, act, call_format
):
    config = DistillConfig(preset=preset, act=act, call_format=call_format, prompts="nano")
    _, outcomes = go(tmp_path, samples, tokenizer, perfect_script(by_id(samples), call_format), config)
    assert {sample.kind for sample in samples} == set(KINDS)
    for outcome in outcomes.values():
        sample = outcome.sample
        assert outcome.accepted and outcome.stage == "done" and outcome.attempts == 1
        if sample.kind in ("sequential", "mixed"):
            turns = sample.turns or [(i,) for i in range(len(sample.reference))]
        else:
            turns = [range(len(sample.reference))]
        wanted = [tuple(sample.reference[i] for i in turn) for turn in turns]
        assert sample.kind != "mixed" or (len(wanted[0]) > 1 and len(wanted) > 1)
        assert len(outcome.records) == len(wanted)
        for record, calls in zip(outcome.records, wanted, strict=True):
            text = record["messages"][-1]["content"]
            assert follows_format(text) and calls_equal(parse_response(text, call_format).calls, calls)


WRONG = "<think>\nhm\n</think>\n\n"


def other_value(sample, number):
    call = sample.reference[number]
    name = next(iter(call.arguments))
    return WRONG + render_calls([Call(call.name, {**call.arguments, name: "z99"})], "python")


FAULTS = {  # what is said -> stage, reason
    "malformed JSON": (lambda s: {"decompose_0": '[{"step": 1,'}, "decompose", "not JSON"),
    "wrong count": (
        lambda s: {"decompose_0": json.dumps([{"step": 1, "description": "do it", "index": [0]}])},
        "count",
        "fewer subtasks than reference calls",
    ),
    "empty decomposition": (lambda s: {"decompose_0": ""}, "decompose", "empty"),
    "truncated decomposition": (
        lambda s: {"decompose_0": ScriptedAnswer('[{"step": 1', "length")},
        "decompose",
        "cut off at the token limit",
    ),
    "overlong": (
        lambda s: {"decompose_0": ScriptedAnswer("", "overlong")},
        "decompose",
        "the prompt is longer than the engine's longest sequence",
    ),
    "empty answer": (lambda s: {"reason_1": ""}, "reason", "empty"),
    "never-ending": (
        lambda s: {"reason_1": ScriptedAnswer("<think>\n" + "the file " * 400, "length")},
        "reason",
        "cut off at the token limit",
    ),
    "words instead of a call": (lambda s: {"reason_1": WRONG + "I would rather not."}, "reason", "no call"),
    "wrong value": (lambda s: {"reason_1": other_value(s, 1)}, "verify", "another value"),
    "wrong tool": (lambda s: {"reason_1": WRONG + "[no_such_tool()]"}, "verify", "another tool"),
    "code for a call": (
        lambda s: {"reason_1": WRONG + "[__import__('os').system('exit 3')]"},
        "reason",
        "calls that cannot be read: a positional argument",
    ),
    "a tag in the thought": (
        lambda s: {
            "reason_1": f"<think>\na </think> b\n</think>\n\n{render_calls([s.reference[1]], 'python')}"
        },
        "compose",
        "a thought tag inside the thought",
    ),
}


@pytest.mark.parametrize("act", ["replay", "execute"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ends_at_its_stage_with_its_reason(tmp_path, samples, tokenizer, fault, act):
    lines, stage, reason = FAULTS[fault]
    sample = chain(samples)
    said = lines(sample)
    script = saying(perfect_script({sample.id: sample}), **said)
    player, outcomes = go(tmp_path, [sample], tokenizer, script, replace(NANO, act=act))
    outcome = outcomes[sample.id]
    assert (outcome.stage, outcome.reason, outcome.records) == (stage, reason, ())
    (text,) = said.values()
    text = text.text if isinstance(text, ScriptedAnswer) else text
    assert text[8:20] in outcome.last_text if stage == "compose" else outcome.last_text == text[:2000]
    assert (
        len(player.asked)
        == {"decompose": 1, "count": 1, "verify": 3, "compose": 1 + len(sample.reference), "reason": 4}[stage]
    )


def test_code_in_a_description_or_an_argument_never_runs(tmp_path, samples, tokenizer):
    marker = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    sample = chain(samples)
    evil = replace(
        sample,
        reference=(Call("run", {"code": code}), Call("run", {"code": "{{ " + code + " }}"})),
        responses=("{{ 7 * 7 }}", "x"),
        query=f"{code} {{{{ {code} }}}}",
    )
    steps = [{"step": i + 1, "description": f"{code} {{{{ 7 * 7 }}}} {i}", "index": [i]} for i in range(2)]
    script = saying(perfect_script({sample.id: evil}), decompose_0=json.dumps(steps), reason_0=None)
    _, outcomes = go(tmp_path / "run", [evil], tokenizer, script)
    outcome = outcomes[sample.id]
    assert outcome.accepted and not marker.exists()
    text = json.dumps(outcome.records[-1])
    assert "{{ 7 * 7 }}" in text and "49" not in text and marker.name in text


def test_a_call_is_asked_for_once_more_and_then_passes(tmp_path, samples, tokenizer):
    sample = chain(samples)
    script = saying(perfect_script({sample.id: sample}), reason_0_0="I forgot to think.")
    player, outcomes = go(tmp_path, [sample], tokenizer, script)
    assert outcomes[sample.id].accepted
    assert [name.rpartition("/")[2] for name in player.asked if "/reason/0/" in name] == ["0", "1"]


def test_attempts_ask_again_for_the_whole_sample_and_the_release_does_not(tmp_path, samples, tokenizer):
    sample = chain(samples)
    script = saying(perfect_script({sample.id: sample}), decompose_0_0="no", decompose_0_1="no")
    _, outcomes = go(tmp_path / "3", [sample], tokenizer, script, replace(NANO, attempts=3))
    assert outcomes[sample.id].accepted and outcomes[sample.id].attempts == 3
    _, outcomes = go(tmp_path / "2", [sample], tokenizer, script, replace(NANO, attempts=2))
    assert outcomes[sample.id].reason == "not JSON" and outcomes[sample.id].attempts == 2
    with pytest.raises(UserError, match="attempts=2: the release never asks again"):
        DistillConfig(preset="release", attempts=2)


def test_a_chain_without_recorded_responses_cannot_be_replayed(tmp_path, samples, tokenizer):
    sample = replace(chain(samples), responses=())
    _, outcomes = go(tmp_path / "replay", [sample], tokenizer, perfect_script({sample.id: sample}))
    assert (outcomes[sample.id].stage, outcomes[sample.id].reason[:20]) == ("act", "no recorded response")
    _, outcomes = go(
        tmp_path / "execute",
        [sample],
        tokenizer,
        perfect_script({sample.id: sample}),
        replace(NANO, act="execute"),
    )
    assert outcomes[sample.id].accepted


def test_what_can_never_be_answered_costs_no_question_and_is_not_tried_again(tmp_path, samples, tokenizer):
    sample = chain(samples)
    script = perfect_script({sample.id: sample})
    for act, broken, reason in (
        ("replay", replace(sample, responses=()), "no recorded response for a call that others follow"),
        (
            "execute",
            replace(sample, task=None),
            "nothing to execute in: the sample has recorded responses only",
        ),
    ):
        player, outcomes = go(tmp_path / act, [broken], tokenizer, script, replace(NANO, act=act, attempts=3))
        outcome = outcomes[sample.id]
        assert (outcome.stage, outcome.reason, outcome.attempts) == ("act", reason, 1)
        assert player.asked == [] and summarise([outcome]).overall.decomposed == 0
    # A prompt that is too long is as long the next time.
    script = saying(script, decompose_0=ScriptedAnswer("", "overlong"))
    player, outcomes = go(tmp_path / "long", [sample], tokenizer, script, replace(NANO, attempts=3))
    assert outcomes[sample.id].attempts == len(player.asked) == 1


def test_a_lone_surrogate_ends_its_sample_and_not_the_run(tmp_path, samples, tokenizer):
    bad, shouting = [
        sample for sample in samples if sample.kind == "sequential" and len(sample.reference) > 1
    ][:2]
    steps = [
        {"step": i + 1, "description": f"do {i} \ud800", "index": [i]} for i in range(len(bad.reference))
    ]
    # JSON's escapes are how it gets in: the answer itself is plain ASCII.
    shouting = replace(shouting, responses=("half \udc00", *shouting.responses[1:]))
    mine = [bad, shouting, *(s for s in samples if s.id not in (bad.id, shouting.id))]
    perfect = perfect_script(by_id(mine))

    def script(request_id):
        return json.dumps(steps) if request_id == f"{bad.id}/decompose/0/0" else perfect(request_id)

    for _ in range(2):  # the second is a restart, from the journal
        _, outcomes = go(tmp_path, mine, tokenizer, script)
        ends = {
            name: (outcome.stage, outcome.reason)
            for name, outcome in outcomes.items()
            if not outcome.accepted
        }
        assert ends == {
            bad.id: ("decompose", "a description with a lone surrogate"),
            shouting.id: ("reason", "a prompt with a lone surrogate"),
        }


def test_an_irrelevant_request_answered_by_a_call_in_another_notation_is_rejected(
    tmp_path, samples, tokenizer
):
    sample = next(sample for sample in samples if sample.kind == "irrelevant")
    name = sample.tools[0]["function"]["name"]
    for call_format, other in (("python", "qwen"), ("qwen", "python"), ("tags", "python")):
        script = saying(
            perfect_script({sample.id: sample}), reason_0=WRONG + render_calls([Call(name)], other)
        )
        config = replace(NANO, call_format=call_format)
        _, outcomes = go(tmp_path / call_format, [sample], tokenizer, script, config)
        outcome = outcomes[sample.id]
        assert outcome.stage == "reason" and outcome.reason.endswith("calls in another notation")


def test_a_call_for_an_irrelevant_request_is_rejected_by_the_paper_and_not_asked_for_by_the_release(
    tmp_path, samples, tokenizer
):
    sample = next(sample for sample in samples if sample.kind == "irrelevant")
    script = saying(perfect_script({sample.id: sample}), reason_0=WRONG + "[find_file(folder='a11')]")
    _, outcomes = go(tmp_path / "paper", [sample], tokenizer, script)
    assert outcomes[sample.id].reason == "a call where none serves the request"
    player, outcomes = go(tmp_path / "release", [sample], tokenizer, script, replace(NANO, preset="release"))
    assert outcomes[sample.id].accepted and player.asked == []


def test_the_release_takes_parallel_calls_as_they_are_and_the_paper_does_not(tmp_path, samples, tokenizer):
    sample = next(sample for sample in samples if sample.kind == "parallel")
    script = saying(perfect_script({sample.id: sample}), reason_1=other_value(sample, 1))
    _, outcomes = go(tmp_path / "paper", [sample], tokenizer, script)
    assert outcomes[sample.id].stage == "verify"
    _, outcomes = go(tmp_path / "release", [sample], tokenizer, script, replace(NANO, preset="release"))
    assert outcomes[sample.id].accepted


def test_parallel_subtasks_apart_do_not_see_one_another_and_in_order_they_do(tmp_path, samples, tokenizer):
    sample = next(sample for sample in samples if sample.kind == "parallel")
    for parallel, seen in (("apart", False), ("in_order", True)):
        player = Listening(tokenizer, perfect_script({sample.id: sample}))
        run(tmp_path / parallel, [sample], tokenizer, player, replace(NANO, parallel=parallel))
        last = player.prompts[f"{sample.id}/reason/{len(sample.reference) - 1}/0"]
        assert (sample.task.subtasks[0] in last) is seen
        assert sample.query not in last  # Q itself is never in the history of a subtask


class Listening(ScriptedEngine):
    """Keeps what it was asked, as text and as seeds."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.prompts, self.seeds, self.most = {}, {}, 0

    def submit(self, requests):
        super().submit(requests)
        self.most = max(self.most, self.in_flight)
        for request in requests:
            self.prompts[request.id] = self._tokenizer.decode(request.prompt_ids)
            self.seeds[request.id] = request.sampling.seed


def run(folder, samples, tokenizer, player, config=NANO, labels=None, labeller=None):
    journal = Journal(folder)
    method = Method(config, Templates(config.prompts, config.call_format), labels)
    engines = {"model": [player] if not isinstance(player, list) else player}
    tokenizers = {"model": tokenizer}
    if labeller is not None:
        engines["labeller"], tokenizers["labeller"] = [labeller], tokenizer
    assert run_pipeline(samples, method, tokenizers, engines, journal)
    journal.close()
    return {outcome.sample.id: outcome for outcome in read_outcomes(folder, by_id(samples))}


# --- modes of Table 6 ---


def test_each_mode_shows_the_model_what_it_says(tmp_path, samples, tokenizer):
    sample = chain(samples)
    calls = [render_calls([call], "python")[1:-1] for call in sample.reference]
    for mode in MODES:
        player = Listening(tokenizer, perfect_script({sample.id: sample}))
        outcomes = run(tmp_path / mode, [sample], tokenizer, player, DistillConfig(mode=mode))
        assert outcomes[sample.id].accepted
        prompt = player.prompts[f"{sample.id}/decompose/0/0"]
        assert all(call in prompt for call in calls) is (mode != "none")
        assert ("worked example" in prompt) is (mode in ("examples", "pseudo"))
        assert (f"{sample.id}/label/0/0" in player.prompts) is (mode == "pseudo")


def test_labels_come_from_a_file_from_the_model_itself_or_from_another(tmp_path, samples, tokenizer):
    sample, config = chain(samples), replace(NANO, mode="pseudo")
    perfect = perfect_script({sample.id: sample})
    model, labeller = Listening(tokenizer, perfect), Listening(tokenizer, perfect)
    assert run(tmp_path / "other", [sample], tokenizer, model, config, labeller=labeller)[sample.id].accepted
    assert labeller.asked and all("/label/" in name for name in labeller.asked)
    assert model.asked and not any("/label/" in name for name in model.asked)

    model = Listening(tokenizer, perfect)
    labels = {sample.id: sample.reference}
    assert run(tmp_path / "file", [sample], tokenizer, model, config, labels=labels)[sample.id].accepted
    assert not any("/label/" in name for name in model.asked)
    outcome = run(tmp_path / "none", [sample], tokenizer, model, config, labels={})[sample.id]
    assert (outcome.stage, outcome.reason[:8]) == ("label", "no label")


def test_with_wrong_labels_the_sample_is_held_against_the_labels(tmp_path, samples, tokenizer):
    sample, config = chain(samples), replace(NANO, mode="pseudo")
    labels = {sample.id: (*sample.reference[:-1], other_call(sample))}
    outcome = run(
        tmp_path,
        [sample],
        tokenizer,
        Listening(tokenizer, perfect_script({sample.id: sample})),
        config,
        labels,
    )
    assert (outcome[sample.id].stage, outcome[sample.id].reason) == ("verify", "another tool")


def other_call(sample):
    """A call that the sample's tools take, of another tool than the reference's last."""
    known = [
        tool["function"] for tool in sample.tools if tool["function"]["name"] != sample.reference[-1].name
    ]
    return Call(known[0]["name"], {name: "z9" for name in known[0]["parameters"]["required"]})


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (Call("no_such_tool"), "a label call to a tool that is not offered"),
        (None, "a label call with a parameter that its tool does not have"),
    ],
)
def test_labels_that_the_tools_do_not_take_end_at_label_and_are_not_tried_again(
    tmp_path, samples, tokenizer, label, reason
):
    sample = chain(samples)
    label = label or Call(sample.reference[0].name, {**sample.reference[0].arguments, "made_up": 1})
    player = Listening(tokenizer, perfect_script({sample.id: sample}))
    config = replace(NANO, mode="pseudo", attempts=3)
    outcome = run(tmp_path, [sample], tokenizer, player, config, {sample.id: (label,)})[sample.id]
    assert (outcome.stage, outcome.reason, outcome.attempts) == ("label", reason, 1) and player.asked == []


def test_no_invented_response_stands_behind_a_label_that_was_not_recorded(tmp_path, samples, tokenizer):
    sample, config = chain(samples, calls=3), replace(NANO, mode="pseudo")
    other = other_call(sample)
    for place, end in ((0, "act"), (len(sample.reference) - 1, "done")):
        labels = tuple(other if i == place else call for i, call in enumerate(sample.reference))
        labelled = replace(sample, reference=labels)
        player = Listening(tokenizer, perfect_script({sample.id: labelled}))
        folder = tmp_path / end
        outcome = run(folder, [sample], tokenizer, player, config, {sample.id: labels})[sample.id]
        assert outcome.stage == end and bool(player.asked) is (end == "done")
        assert "was recorded" not in json.dumps(outcome.records)


# --- what the corpus is ---


def test_the_loss_mask_covers_the_composed_turn_and_nothing_else(tmp_path, samples, tokenizer):
    _, outcomes = go(tmp_path, samples, tokenizer, perfect_script(by_id(samples)))
    corpus_bytes(tmp_path, samples)
    records, rejections = read_records(tmp_path / "corpus.jsonl")
    assert (
        not rejections.total
        and len(records) == sum(len(outcome.records) for outcome in outcomes.values()) > 80
    )
    for record in records:
        rendered = render(record, tokenizer, max_length=2048)
        assert not rendered.rejected
        (sample,) = rendered.samples
        learned = tokenizer.decode(sample.tokens[sample.loss_mask])
        assert learned == record.messages[-1]["content"] + "<|im_end|>"


def test_records_have_the_layout_in_which_a_model_acts_afterwards(tmp_path, samples, tokenizer):
    """Every prompt that `solve` gives a model that answers as taught is the prompt of a record."""
    _, outcomes = go(
        tmp_path, samples, tokenizer, perfect_script(by_id(samples)), replace(NANO, act="execute")
    )
    answers, prompts = {}, set()
    for outcome in outcomes.values():
        for record in outcome.records:
            text = tokenizer.apply_chat_template(
                record["messages"][:-1], tools=record["tools"], add_generation_prompt=True, tokenize=False
            )
            answers[text] = record["messages"][-1]["content"]

    def generate(requests):
        for request in requests:
            prompts.add(tokenizer.decode(request.prompt_ids))
            ids = tuple(tokenizer(answers[tokenizer.decode(request.prompt_ids)])["input_ids"])
            yield Sample(
                request.id,
                request.prompt_ids,
                (*ids, tokenizer.eos_token_id),
                (0.0,) * (len(ids) + 1),
                "stop",
                0,
            )

    tasks = [sample.task for sample in samples if sample.kind != "report"]
    attempts = solve(tasks, lambda requests: list(generate(requests)), tokenizer)
    assert all(attempt.solved for attempt in attempts)
    assert prompts == set(answers)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_corpus_is_shuffled_without_duplicates_and_reads_back(tmp_path, form):
    records = [
        {
            "messages": [
                {"role": "user", "content": f"q{i % 50}\u2028"},
                {"role": "assistant", "content": "a"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}],
            "category": "report",
            "loss_turns": "last",
            "id": f"{i:03d}/0",
            "source": "x",
        }
        for i in range(120)
    ]
    first = write_corpus(records, tmp_path / "a", form=form, seed=0)
    again = write_corpus(reversed(records), tmp_path / "b", form=form, seed=0)
    other = write_corpus(records, tmp_path / "c", form=form, seed=1)
    assert (first.records, first.duplicates) == (50, 70)
    assert first.path.read_bytes() == again.path.read_bytes() != other.path.read_bytes()
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    read, rejections = read_records(first.path)
    order = [record.messages[0]["content"] for record in read]
    assert (
        not rejections.total and set(order) == {f"q{i}\u2028" for i in range(50)} and order != sorted(order)
    )
    assert read[0].tools[0]["function"]["name"] == "f" and read[0].loss_turns == "last"
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.path.name]


# --- the pipeline: order, bounds, interruption ---


def test_the_order_of_arrival_and_what_is_in_flight_change_nothing(tmp_path, samples, tokenizer):
    script = perfect_script(by_id(samples))
    go(tmp_path / "a", samples, tokenizer, script)
    expected = corpus_bytes(tmp_path / "a", samples)
    for name, options, in_flight in (("b", {"batch": 3, "newest_first": True}, 64), ("c", {"batch": 1}, 2)):
        go(
            tmp_path / name,
            list(reversed(samples)),
            tokenizer,
            script,
            replace(NANO, in_flight=in_flight),
            **options,
        )
        assert corpus_bytes(tmp_path / name, samples) == expected


def test_no_more_than_in_flight_wait_and_all_engines_share_the_work(tmp_path, samples, tokenizer):
    drawn = []

    def counted():
        for sample in samples:
            drawn.append(sample.id)
            yield sample

    script = perfect_script(by_id(samples))
    players = [Listening(tokenizer, script, batch=1) for _ in range(3)]
    journal, early = Journal(tmp_path), []
    method = Method(replace(NANO, in_flight=4), Templates("nano"))

    def stopped():
        early.append(len(drawn))
        return False

    assert run_pipeline(counted(), method, {"model": tokenizer}, {"model": players}, journal, stopped=stopped)
    assert all(player.most == 4 for player in players)
    assert min(len(player.asked) for player in players) > 20
    reports = sum(sample.kind == "report" for sample in samples)
    assert (
        early[1] <= 3 * 4 + reports < len(samples)
    )  # samples are drawn when there is room for their questions


def test_tools_that_take_their_time_do_not_wait_for_one_another(tmp_path, samples, tokenizer, monkeypatch):
    """A call returns only when a call of each of the twelve chains is under way: one after the other, none would."""
    together = [threading.Barrier(12, timeout=10)]

    class Slow:
        done = False

        def reset(self, task):
            self.left = list(task.responses)

        def call(self, call):
            for barrier in together:
                barrier.wait()
            return Observation(self.left.pop(0))

        def observe(self):
            return ()

    chains = [s for s in read_seeds(["toolworld:12,subtasks=2,kinds=sequential"])[0] if s.task]
    slow = [replace(sample, task=SimpleNamespace(responses=sample.responses)) for sample in chains]
    monkeypatch.setattr("dcore_jax.distill.adapters.adapter_for", lambda task: Slow())
    config = replace(NANO, act="execute")
    _, outcomes = go(tmp_path / "slow", slow, tokenizer, perfect_script(by_id(slow)), config)
    assert len(outcomes) == 12 and all(outcome.accepted for outcome in outcomes.values())
    together.clear()
    go(tmp_path / "one", slow, tokenizer, perfect_script(by_id(slow)), replace(config, in_flight=1))
    assert corpus_bytes(tmp_path / "slow", slow) == corpus_bytes(tmp_path / "one", slow)


def test_seeds_depend_on_the_question_alone(tmp_path, samples, tokenizer):
    script = perfect_script(by_id(samples))
    one, other = Listening(tokenizer, script), Listening(tokenizer, script, batch=2, newest_first=True)
    run(tmp_path / "a", samples, tokenizer, one)
    run(tmp_path / "b", list(reversed(samples)), tokenizer, other, replace(NANO, in_flight=5))
    assert one.seeds == other.seeds and len(set(one.seeds.values())) == len(one.seeds) > 100
    reseeded = Listening(tokenizer, script)
    run(tmp_path / "c", samples, tokenizer, reseeded, replace(NANO, seed=1))
    assert not set(reseeded.seeds.values()) & set(one.seeds.values())


def test_each_stage_samples_as_the_config_says(tmp_path, samples, tokenizer):
    wishes = []

    class Wishing(ScriptedEngine):
        def submit(self, requests):
            wishes.extend((str(request.id).split("/")[1], request.sampling) for request in requests)
            super().submit(requests)

    config = replace(NANO, decompose=DecomposeSampling(11, 0.5, 0.9), reason=ReasonSampling(22, 0.0, 1.0, 4))
    run(tmp_path, samples[:10], tokenizer, Wishing(tokenizer, perfect_script(by_id(samples))), config)
    asked = {(stage, s.max_tokens, s.temperature, s.top_p, s.top_k) for stage, s in wishes}
    assert asked == {("decompose", 11, 0.5, 0.9, -1), ("reason", 22, 0.0, 1.0, 4)}


def test_a_stopped_run_goes_on_where_it_was_and_asks_nothing_twice(tmp_path, samples, tokenizer):
    script = perfect_script(by_id(samples))
    go(tmp_path / "whole", samples, tokenizer, script)
    rounds = iter(range(10_000))
    first, outcomes = go(
        tmp_path / "cut",
        samples,
        tokenizer,
        script,
        replace(NANO, in_flight=8),
        batch=3,
        stopped=lambda: next(rounds) == 20,
    )
    assert 0 < len(outcomes) < len(samples)
    lost = first.in_flight
    second, outcomes = go(tmp_path / "cut", samples, tokenizer, script)
    assert len(outcomes) == len(samples)
    assert len(set(first.asked) & set(second.asked)) == lost <= 8
    third, _ = go(tmp_path / "cut", samples, tokenizer, script)
    assert third.asked == []
    assert corpus_bytes(tmp_path / "cut", samples) == corpus_bytes(tmp_path / "whole", samples)
    counts = Counter(
        json.loads(line)["id"] for path in (tmp_path / "cut").glob("outcomes-*.jsonl") for line in path.open()
    )
    assert set(counts.values()) == {1} and len(counts) == len(samples)


def test_a_torn_last_line_is_cut_off_and_a_broken_one_is_named(tmp_path, samples, tokenizer):
    script = perfect_script(by_id(samples))
    go(tmp_path, samples, tokenizer, script)
    whole = corpus_bytes(tmp_path, samples)
    torn = sorted(tmp_path.glob("outcomes-*.jsonl"))[0]
    lines = torn.read_bytes().splitlines(keepends=True)
    torn.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    again, _ = go(tmp_path, samples, tokenizer, script)
    assert again.asked == [] and corpus_bytes(tmp_path, samples) == whole  # the answers were all there
    torn.write_bytes(b"garbage\n" + torn.read_bytes())
    with pytest.raises(UserError, match=r"outcomes-\d\d.jsonl:1: not a line of a journal"):
        Journal(tmp_path)


KILLED = """
import os, random, signal, sys, time
from dcore_jax.distill.algorithm import Method
from dcore_jax.distill.config import DistillConfig
from dcore_jax.distill.journal import Journal
from dcore_jax.distill.pipeline import run_pipeline
from dcore_jax.distill.scripted import ScriptedEngine, perfect_script
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.distill.templates import Templates
from pathlib import Path
from transformers import AutoTokenizer

folder, tokenizer = Path(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2])
samples, _ = read_seeds(["toolworld:150,subtasks=1-4,reports=yes"])
script = perfect_script({sample.id: sample for sample in samples})

class Slow(ScriptedEngine):
    def poll(self):
        time.sleep(0.002)
        return super().poll()

def run():
    engine = Slow(tokenizer, script, batch=2, newest_first=True)
    method = Method(DistillConfig(prompts="nano", in_flight=16), Templates("nano"))
    run_pipeline(samples, method, {"model": tokenizer}, {"model": [engine]}, Journal(folder))

killed = 0
for seed in range(5):
    child = os.fork()
    if not child:
        run()
        os._exit(0)
    time.sleep(random.Random(seed).uniform(0.1, 0.35))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    done = sum(path.read_bytes().count(b"\\n") for path in folder.glob("outcomes-*"))
    print("killed", killed, "done", done)
run()
"""


def test_the_corpus_after_five_kills_equals_the_uninterrupted_one_byte_for_byte(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(tmp_path / "tokenizer")]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[4].startswith("killed 5"), done.stdout
    samples, _ = read_seeds(["toolworld:150,subtasks=1-4,reports=yes"])
    assert int(lines[0].split()[-1]) < len(samples)
    go(tmp_path / "whole", samples, tokenizer, perfect_script(by_id(samples)))
    assert corpus_bytes(tmp_path / "killed", samples) == corpus_bytes(tmp_path / "whole", samples)


def test_a_chat_template_that_fails_rejects_its_sample_and_no_other(tmp_path, samples, tokenizer):
    bad = chain(samples)
    fragile = copy.copy(tokenizer)
    fragile.chat_template = (
        "{% if '"
        + bad.query
        + "' in messages[-1].content %}{{ raise_exception('not this one') }}{% endif %}"
        + tokenizer.chat_template
    )
    player = Listening(fragile, perfect_script(by_id(samples)))
    outcomes = run(tmp_path, samples, fragile, player)
    outcome = outcomes.pop(bad.id)
    assert (outcome.stage, outcome.reason) == ("decompose", "the chat template failed: not this one")
    assert all(other.accepted for other in outcomes.values())
