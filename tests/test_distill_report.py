"""The report of a distillation run: counted in one pass, escaped, and readable without a network."""

import re
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from random import Random

import pytest

from dcore_jax.calls import Call, render_calls
from dcore_jax.data import Rejections
from dcore_jax.distill.report import PUBLISHED_TABLE6, Table6Row, summary_table, table6, write_report
from dcore_jax.distill.sample import Outcome
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.distill.seeds.toolworld import sample_of
from dcore_jax.distill.tally import EXAMPLES, MAX_REASONS, OTHER, TRAJECTORIES, summarise
from dcore_jax.errors import UserError
from dcore_jax.toolworld import generate_tasks

SAMPLES, _ = read_seeds(["toolworld:60,reports=yes"])
EVIL = "<script>alert('x')</script><img src=http://evil.example/x.png onerror=\"y\">"
VOID = {"meta", "rect", "br", "img", "link"}


class Page(HTMLParser):
    """Reads a page: its text, its tags with attributes, and whether every tag is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def accepted(sample, *, tokens=100, subtasks=None):
    numbers = range(max(len(sample.reference), 1)) if sample.kind == "sequential" else range(1)
    messages = [*sample.history, {"role": "user", "content": sample.query}]
    records = []
    for number in numbers:
        calls = sample.reference if sample.kind == "parallel" else sample.reference[number : number + 1]
        said = render_calls(calls, "python") if calls else sample.answer
        turn = {
            "role": "assistant",
            "content": f"<think>\nthought {number} of {sample.id}\n</think>\n\n{said}",
        }
        records.append({"messages": [*messages, turn]})
        if number < len(sample.responses):
            messages += [
                {"role": "assistant", "content": said},
                {"role": "tool", "content": sample.responses[number]},
            ]
    texts = tuple(f"subtask {i}" for i in range(len(sample.reference))) if subtasks is None else subtasks
    return Outcome(
        sample, "done", "", 1, texts, tuple(records), {"decompose": 300, "reason": 200}, {"decompose": 40, "reason": tokens}
    )  # fmt: skip


def rejected(sample, stage="count", reason="3 subtasks for 2 calls", text="what it said"):
    return Outcome(sample, stage, reason, 1, ("one",), (), {"decompose": 300}, {"decompose": 40}, text)


def outcomes():
    """Two accepted of every three; the others rejected at changing stages."""
    ends = [("decompose", "not JSON"), ("count", "3 subtasks for 2 calls"), ("verify", "another value")]
    return [accepted(s) if i % 3 else rejected(s, *ends[i // 3 % 3]) for i, s in enumerate(SAMPLES)]


def page(tmp_path, items, **changes):
    options = {"seconds": 60.0, "config": {"mode": "examples"}, "rejected_seeds": Rejections(), **changes}
    summary = write_report(iter(items), tmp_path / "run" / "report.html", **options)
    return summary, (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_counts_by_kind_source_and_stage_add_up():
    items = outcomes()
    summary = summarise(iter(items))
    assert summary.overall.samples == len(items) and summary.overall.accepted == sum(
        o.accepted for o in items
    )
    for groups, key in (
        (summary.by_kind, lambda o: o.sample.kind),
        (summary.by_source, lambda o: o.sample.source),
    ):
        for name, ends in groups.items():
            mine = [o for o in items if key(o) == name]
            assert (ends.samples, ends.accepted) == (len(mine), sum(o.accepted for o in mine))
            for stage in ("decompose", "count", "verify"):
                assert ends.by_stage[stage] == sum(o.stage == stage for o in mine)
    assert sum(summary.reasons.values()) == sum(not o.accepted for o in items)
    assert summary.passed("verify") == summary.overall.accepted
    assert summary.passed("decompose") == len(items) - sum(o.stage == "decompose" for o in items)
    assert summary.records == sum(len(o.records) for o in items)
    assert summary.generated_tokens == {
        "decompose": 40 * len(items),
        "reason": 100 * summary.overall.accepted,
    }
    assert summary.stages() == ["decompose", "count", "verify"]


def test_the_page_is_one_well_formed_file_that_loads_nothing(tmp_path):
    _, text = page(tmp_path, outcomes())
    read = Page(text)
    assert read.open == []
    tags = {tag for tag, _ in read.tags}
    assert {"svg", "style", "table", "article"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    attributes = [(name, value or "") for _, found in read.tags for name, value in found.items()]
    assert not [
        name for name, _ in attributes if name in ("src", "href", "srcset", "action") or name.startswith("on")
    ]
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_what_comes_from_data_or_from_a_model_is_escaped_wherever_it_stands(tmp_path):
    task = generate_tasks(1, seed=3, kinds=["sequential"])[0]
    tool = {"type": "function", "function": {"name": EVIL, "description": EVIL, "parameters": {}}}
    base = sample_of(task)
    fields = dict(
        id=EVIL,
        source=EVIL,
        origin=EVIL,
        policy=EVIL,
        tools=(tool,),
        query=EVIL,
        answer=EVIL,
        kind="sequential",
    )
    fields |= dict(
        history=({"role": "user", "content": EVIL},), reference=(Call(EVIL, {"a": EVIL}),), responses=(EVIL,)
    )
    evil = type(base)(**fields)
    good = accepted(evil, subtasks=(EVIL,))
    turn = {"role": "assistant", "content": f"<think>\n{EVIL}\n</think>\n\n{EVIL}"}
    good = Outcome(good.sample, "done", "", 1, (EVIL,), ({"messages": [turn]},), {EVIL: 1}, {EVIL: 1})
    bad = Outcome(evil, EVIL, EVIL, 1, (EVIL,), (), {}, {}, EVIL)
    seeds = Rejections(counts={EVIL: 1}, examples={EVIL: EVIL})
    _, text = page(tmp_path, [good, bad], config={EVIL: EVIL, "nested": {EVIL: [EVIL]}}, rejected_seeds=seeds)
    assert "alert(" in text  # it is there to be read
    read = Page(text)
    tags = {tag for tag, _ in read.tags}
    assert "script" not in tags and "img" not in tags and read.open == []
    assert "<script" not in text and "<img" not in text


def test_the_page_shows_what_a_reader_looks_for(tmp_path):
    seeds = Rejections(counts={"no tools are offered": 7}, examples={"no tools are offered": "a.jsonl:3"})
    summary, text = page(
        tmp_path, outcomes(), rejected_seeds=seeds, seconds=7200.0, config={"reason": {"top_p": 0.95}}
    )
    shown = re.sub(r"\s+", " ", " ".join(Page(text).text))
    for wanted in (
        f"{summary.overall.accepted} of {summary.overall.samples} samples accepted",
        "Success by stage", "Success by kind", "Success by source", "toolworld", "irrelevant",
        "count: 3 subtasks for 2 calls", "what it said", "no tools are offered", "a.jsonl:3", "2.00 h",
        f"{TRAJECTORIES} random trajectories", "Subtasks of an accepted sample", "Composed turn, characters",
        "reason.top_p", "0.95", f"{summary.generated_tokens.total():,}",
    ):  # fmt: skip
        assert wanted in shown, wanted
    assert text.count("<article>") == TRAJECTORIES


def test_subtasks_thoughts_calls_and_responses_stand_apart_and_in_order(tmp_path):
    sample = next(s for s in SAMPLES if s.kind == "sequential" and len(s.reference) == 3)
    _, text = page(tmp_path, [accepted(sample)])
    body = text[text.index("<article>") : text.index("</article>")]
    assert [line for line in re.findall(r'<pre class="(\w+)">', body)] == ["query"] + [
        "thought",
        "call",
        "response",
    ] * 3
    assert re.findall(r"<li>(.*?)</li>", body) == ["subtask 0", "subtask 1", "subtask 2"]
    blocks = [Page(block).text for block in re.findall(r'<pre class="response">.*?</pre>', body, re.DOTALL)]
    assert ["".join(block) for block in blocks] == list(sample.responses)
    thoughts = re.findall(r'<pre class="thought">(.*?)</pre>', body)
    assert thoughts == [f"thought {i} of {sample.id}" for i in range(3)]


def test_a_parallel_turn_shows_all_its_responses_and_an_irrelevant_one_a_reply(tmp_path):
    parallel = next(s for s in SAMPLES if s.kind == "parallel")
    irrelevant = next(s for s in SAMPLES if s.kind == "irrelevant")
    _, text = page(tmp_path, [accepted(parallel)])
    assert text.count('<pre class="response">') == len(parallel.responses) > 1
    _, text = page(tmp_path, [accepted(irrelevant)])
    assert text.count('<pre class="reply">') == 1 and '<pre class="call">' not in text


def test_a_recorded_response_is_shown_only_beside_the_call_that_it_answers(tmp_path):
    """Labels may call otherwise than the seed whose responses were recorded."""
    parallel = next(s for s in SAMPLES if s.kind == "parallel" and len(s.reference) == 3)
    labels = (parallel.reference[2], Call("f", {"x": 1}), parallel.reference[0])
    made = accepted(replace(parallel, reference=labels))
    _, text = page(tmp_path, [replace(made, sample=parallel)])
    blocks = re.findall(r'<pre class="response">.*?</pre>', text, re.DOTALL)
    shown = ["".join(Page(block).text) for block in blocks]
    assert shown == [parallel.responses[2], parallel.responses[0]]


def test_the_page_is_the_same_in_whatever_order_outcomes_arrive(tmp_path):
    items = outcomes()
    _, first = page(tmp_path, items)
    Random(0).shuffle(items)
    _, second = page(tmp_path, items)
    assert first == second


def test_examples_of_a_reason_are_few_and_different():
    summary = summarise([rejected(s) for s in SAMPLES] + [rejected(SAMPLES[0])] * 5)
    (chosen,) = summary.examples.values()
    ids = [outcome.sample.id for outcome in chosen.outcomes()]
    assert len(ids) == len(set(ids)) == EXAMPLES


def test_memory_does_not_grow_with_the_number_of_outcomes(tmp_path):
    def stream(count):
        for number in range(count):
            yield Outcome(
                SAMPLES[0], "reason", f"odd {number}", 1, (), (), {"reason": 9}, {"reason": number % 999}
            )

    def peak(count):
        tracemalloc.start()
        summary, _ = page(tmp_path, stream(count))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert summary.overall.samples == count and len(summary.reasons) == MAX_REASONS + 1
        assert sum(n for reason, n in summary.reasons.items() if reason.text == OTHER) == count - MAX_REASONS
        return used

    peak(1_000)  # imports and caches
    assert peak(2_500) < 1.1 * peak(1_000) + 100_000


def test_a_run_without_any_outcome_still_has_a_page(tmp_path):
    summary, text = page(tmp_path, [], seconds=0.0)
    assert Page(text).open == [] and "No sample was accepted" in text and "No sample was rejected" in text
    assert "time not measured" in summary_table(summary)


def test_lone_surrogates_do_not_keep_the_page_from_being_written(tmp_path):
    _, text = page(tmp_path, [rejected(SAMPLES[0], text="half \ud83d of a pair")])
    assert "half ? of a pair" in text


def test_a_page_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"report\.html: the report cannot be written"):
        write_report(
            [], tmp_path / "file" / "report.html", seconds=1.0, config={}, rejected_seeds=Rejections()
        )


def test_the_terminal_table_holds_the_same_counts():
    summary = summarise(outcomes())
    lines = summary_table(summary, seconds=100.0, reasons=2).splitlines()
    assert lines[0].split() == ["samples", "accepted", "decompose", "count", "verify"]
    by_name = {line.split()[0]: line.split() for line in lines[1:]}
    assert by_name["all"][1:3] == [str(summary.overall.samples), str(summary.overall.accepted)]
    for name, ends in summary.by_kind.items():
        assert by_name[name][1:3] == [str(ends.samples), str(ends.accepted)]
    assert sum(line.startswith("rejected:") for line in lines) == 3 and "1 other reasons" in "".join(lines)
    assert f"{summary.overall.samples / 100:.2f} samples/s" in lines[-1]


def test_table_6_stands_beside_the_published_one():
    rows = [
        Table6Row("no reference", 200, 100, 90),
        Table6Row("pseudo-labels", 0, 0, 0),
        Table6Row("mine", 3, 3, 1),
    ]
    lines = table6(rows).splitlines()
    assert lines[2] == "| no reference | 200 | 50.0 % | 45.0 % | 73.8 % |"
    assert lines[3] == "| pseudo-labels | 0 | - | - | 92.8 % |"
    assert lines[4] == "| mine | 3 | 100.0 % | 33.3 % |  |"
    assert list(PUBLISHED_TABLE6.values()) == [73.8, 89.1, 93.2, 92.8]
