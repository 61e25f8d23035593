"""API-Bank: stored answers in the forms in which people keep them, scored through the command, on rows made up here."""

import json
from pathlib import Path

import pytest

from dcore_jax import cli
from dcore_jax.calls import Call, render_calls

REAL = Path(__file__).parents[2] / "shared" / "data" / "api_bank" / "level-1.json"
SYSTEM = (
    "You can use the following tools:\n1. Name: Book\nDescription: books\nParameters: {}\n2. Name: Today\n"
)
ANSWERS = [
    {"name": "Book", "parameters": {"hotel": "Inn", "rooms": "2"}},
    {"name": "Today", "parameters": {}},
    {"name": "Book", "parameters": {"hotel": "O'Hara's", "note": "[{'a': 'b'}, \"c\"]"}},
    # Some references of the release hold half of the next parameter: they must still be reachable.
    {"name": "Book", "parameters": {"hotel": "2', rooms="}},
]
ROWS = [
    {"system": SYSTEM, "user": f"<user>{i}</user>", "answer": [answer], "other": {"file": "f.jsonl", "id": i}}
    for i, answer in enumerate(ANSWERS)
]


def quoted(call, api_request=True):
    """API-Bank's own notation, which escapes nothing."""
    inside = ", ".join(f"{name}='{value}'" for name, value in call["parameters"].items())
    return f"API-Request: [{call['name']}({inside})]" if api_request else f"{call['name']}({inside})"


def tagged(call):
    return f"<think> yes </think>\n<tool_call>\n{json.dumps(call)}\n</tool_call>\n<response> done </response>"


def openai(call):
    function = {"name": call["name"], "arguments": json.dumps(call["parameters"])}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


NOTATIONS = {
    "calls": lambda call: [call],
    "one call": lambda call: call,
    "JSON text": lambda call: json.dumps([call]),
    "python": lambda call: render_calls([Call(call["name"], call["parameters"])], "python"),
    "qwen": lambda call: "I will.\n" + render_calls([Call(call["name"], call["parameters"])], "qwen"),
    "tags": tagged,
    "API-Bank's": quoted,
    "API-Bank's without brackets": lambda call: quoted(call, False),
    "a message with tool_calls": openai,
    "several calls, one of them right": lambda call: [{"name": "Other", "arguments": {}}, call],
}
FORMS = {
    "id and prediction": ("p.jsonl", lambda answers: lines({"id": i, "prediction": a} for i, a in enumerate(answers))),
    "from 1, as text": ("p.jsonl", lambda answers: lines({"index": f"{i + 1}", "output": a} for i, a in enumerate(answers))),
    "lines in order": ("p.jsonl", lines),
    "a list": ("p.json", lambda answers: json.dumps(answers, indent=1)),
    "a list in one line of JSON lines": ("p.jsonl", lambda answers: json.dumps(answers)),
    "a mapping by row": ("p.json", lambda answers: json.dumps({f"{i}": a for i, a in enumerate(answers)}, indent=1)),
    "a mapping by level and row": ("p.json", lambda answers: json.dumps({f"level-1_{i}": a for i, a in enumerate(answers)})),
    "the benchmark's own place, in another order": (
        "p.jsonl", lambda answers: lines({"id": f"f.jsonl:{i}", "response": a} for i, a in reversed(list(enumerate(answers)))),
    ),
    "a list under a name": ("p.json", lambda answers: json.dumps({"model": "m", "predictions": answers})),
    "lines of text": ("p.txt", lambda answers: "\n".join(answer.replace("\n", " ") for answer in answers)),
    "the questions' rows with answers in them": (
        "p.json", lambda answers: json.dumps([{**row, "answer": a} for row, a in zip(ROWS, answers)]),
    ),
}  # fmt: skip


def evaluate(folder, text, name="p.jsonl", rows=ROWS):
    (folder / "level-1.json").write_text(json.dumps(rows))
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    data, predictions, output = (str(folder / part) for part in ("level-1.json", name, "out"))
    cli.main(["eval", "api-bank", "--data", data, "--predictions", predictions, "--output", output])
    items = [json.loads(line) for line in (folder / "out" / "items.jsonl").read_text().splitlines()]
    return json.loads((folder / "out" / "summary.json").read_text()), items


@pytest.mark.parametrize("notation", NOTATIONS)
def test_the_reference_is_right_in_every_notation(notation, tmp_path):
    summary, _ = evaluate(tmp_path, lines(map(NOTATIONS[notation], ANSWERS)))
    assert summary["categories"] == {"level-1": {"correct": 4, "total": 4, "accuracy": 1.0}}
    assert summary["all"]["correct"] == 4 and not summary["left_out"]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_any_form_answers_the_questions_that_it_names(form, tmp_path):
    name, write = FORMS[form]
    answers = [tagged(answer) for answer in ANSWERS]
    answers[1] = tagged({"name": "Tomorrow", "parameters": {}})
    summary, items = evaluate(tmp_path, write(answers), name)
    assert [item["correct"] for item in items] == [True, False, True, True]
    assert summary["left_out"] == [] and "Today()" in items[1]["reason"]


WRONG = {
    "another value": {"name": "Book", "parameters": {"hotel": "inn", "rooms": "2"}},
    "a number for a text": {"name": "Book", "parameters": {"hotel": "Inn", "rooms": 2}},
    "a parameter too few": {"name": "Book", "parameters": {"hotel": "Inn"}},
    "one too many": {"name": "Book", "parameters": {"hotel": "Inn", "rooms": "2", "beds": "1"}},
    "words": "I am sorry, I cannot.",
    "nothing": None,
    "a call that is cut off": '<think> a </think>\n<tool_call>\n{"name": "Book", "par',
    "a number": 3,
}


@pytest.mark.parametrize("what", WRONG)
def test_whatever_differs_from_the_reference_is_wrong(what, tmp_path):
    summary, items = evaluate(tmp_path, lines([WRONG[what], *ANSWERS[1:]]))
    assert [item["correct"] for item in items] == [False, True, True, True]
    assert items[0]["reason"] and summary["left_out"] == []


def test_a_damaged_file_is_reported_by_line_and_the_rest_is_scored(tmp_path):
    rows = [json.dumps({"id": i, "prediction": [answer]}).encode() for i, answer in enumerate(ANSWERS)]
    other = json.dumps({"id": 2, "prediction": "no"}).encode()
    damaged = [
        rows[0],
        rows[1][:20],
        b'{"id": 3, "prediction": "caf\xe9"}',
        rows[0],
        rows[2],
        other,
        b'{"id": 9, "output": ""}',
    ]
    summary, items = evaluate(tmp_path, b"\n".join(damaged))
    assert summary["all"] == {"correct": 1, "total": 4, "accuracy": 0.25}  # a repeated line counts once
    assert [(item["correct"], item["reason"]) for item in items] == [
        (True, ""),
        (False, "no prediction"),
        (False, "two different answers (p.jsonl:5, p.jsonl:6)"),
        (False, "no prediction"),
    ]
    assert [line.split(": ")[0] for line in summary["left_out"][:5]] == [
        f"p.jsonl:{i}" for i in (2, 3, 4, 6, 7)
    ]
    assert summary["left_out"][5:] == [
        "level-1 question 1: no prediction",
        "level-1 question 3: no prediction",
    ]
    assert "damaged or left out" in (tmp_path / "out" / "report.html").read_text().lower()


def test_levels_are_counted_apart_and_together(tmp_path):
    for level, answers in (("level-1", ANSWERS), ("level-3", ANSWERS[:1])):
        rows = [{"system": "", "user": "?", "answer": [answer]} for answer in answers]
        (tmp_path / f"{level}.json").write_text(json.dumps(rows))
        (tmp_path / f"{level}.out.jsonl").write_text(lines([ANSWERS[0]] * len(answers)))
    data = [str(tmp_path / f"{level}.json") for level in ("level-1", "level-3")]
    predictions = [str(tmp_path / f"{level}.out.jsonl") for level in ("level-1", "level-3")]
    cli.main(
        ["eval", "api-bank", "--data", *data, "--predictions", *predictions, "--output", str(tmp_path / "o")]
    )
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert {name: count["correct"] for name, count in summary["categories"].items()} == {
        "level-1": 1,
        "level-3": 1,
    }
    assert summary["all"] == {"correct": 2, "total": 5, "accuracy": 0.4}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no question"),
        ([{"user": 1}], 'level-1.json:1: a question needs a "user" text'),
        ([{"user": "?", "answer": []}], 'level-1.json:1: "answer" holds no call'),
    ],
)
def test_a_level_that_is_none_is_one_line(rows, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(tmp_path, "", rows=rows)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_level_1_of_the_release(tmp_path):
    rows = json.loads(REAL.read_text())
    for divisor, correct in ((10**6, 399), (3, 266)):  # the reference, then every third call made wrong
        calls = [
            {**row["answer"][0], "name": row["answer"][0]["name"] + "s" * (i % divisor == divisor - 1)}
            for i, row in enumerate(rows)
        ]
        summary, _ = evaluate(tmp_path, lines(map(quoted, calls)), rows=rows)
        assert summary["categories"] == {
            "level-1": {"correct": correct, "total": 399, "accuracy": correct / 399}
        }
