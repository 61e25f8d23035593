"""API-Bank (Li et al., arXiv 2304.08244) in the form of ToolRL's release: is one of the calls of a turn the reference's?

A question is a row `{"system", "user", "answer": [{"name", "parameters"}], "other"}`; a level is a file. A prediction is right
where any of its calls equals the reference call: name, parameter names and values, texts character by character. ResT's figure is
the micro average over levels, which `summary.json` has as `all`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.calls import Call, calls_equal, parse_any_response, render_calls
from dcore_jax.data.files import file_rows, local_file, stem_of
from dcore_jax.data.malformed import Malformed, decode_json
from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.agent_config import AgentConfig
from dcore_jax.evaluation.predictions import Predictions, read_predictions
from dcore_jax.evaluation.single_turn import Prompt, answer_prompts
from dcore_jax.evaluation.summary import Evaluation, Item

_LEVEL = re.compile(r"level[-_ ]?(\d+)", re.IGNORECASE)
_TOOL = re.compile(r"^\d+\. Name: (\S+)", re.MULTILINE)
# API-Bank's own notation, `API-Request: [Name(key='value')]`, quotes texts without escaping the quotes inside.
_REQUEST = re.compile(r"\[?\s*(\w+)\((.*)\)\s*\]?", re.DOTALL)
_NEXT_PARAMETER = re.compile(r",\s*(?=\w+\s*=\s*['\"])")
_PARAMETER = re.compile(r"(\w+)\s*=\s*(['\"])(.*)\2", re.DOTALL)
_LONGEST_REQUEST = 20_000  # characters; what is longer is no call
# ResT's Table: Qwen3-4B-2507 before and after, over the three levels together.
PUBLISHED = {
    "Qwen3-4B-2507 (ResT's paper)": {"all": 66.33},
    "the same with ResT (its paper)": {"all": 68.68},
}


@dataclass(frozen=True)
class Question:
    """One row of a level: what the model is shown, and the calls that are right."""

    id: str  # the row's place in its file, from 0
    level: str
    messages: tuple[Mapping[str, str], ...]
    reference: tuple[Call, ...]
    tools: tuple[str, ...] = ()  # names that the question offers, where it lists them
    alias: str = ""  # the file and place in API-Bank's own release

    @property
    def key(self) -> str:
        """An id that is unique over levels."""
        return f"{self.level}/{self.id}"


def evaluate_files(data: Sequence[str], predictions: Sequence[str], model: str = "") -> Evaluation:
    """Stored answers, a file for each level's file, in the same order.

    Args:
      model: what it is called; empty: the first file of its answers.

    Raises:
      UserError: a file that cannot be read, or two files of one level.
    """
    levels = read_levels(data)
    items: list[Item] = []
    left_out: list[str] = []
    for questions, path in zip(levels, predictions, strict=True):
        answers = read_answers(path, questions)
        items += score(questions, answers)
        left_out += answers.left_out
        missing = answers.missing([question.id for question in questions])
        left_out += [f"{questions[0].level} question {name}: no prediction" for name in missing]
    return evaluation(items, model or Path(predictions[0]).name, left_out)


def evaluate_agent(
    data: Sequence[str], agent: AgentConfig, output: str | Path, model: str = ""
) -> Evaluation:
    """Asks an engine, a server or the reference, and scores what it says; `answers.jsonl` in the output folder keeps it.

    Raises:
      UserError: a level that cannot be read; no model, or one that cannot be opened.
    """
    questions = [question for level in read_levels(data) for question in level]
    prompts = [Prompt(q.key, q.messages, render_calls(q.reference, "tags")) for q in questions]
    answers, left_out = answer_prompts(prompts, agent, output)
    items = []
    for question in questions:
        known = question.key in answers
        reason = verdict(question, answers[question.key]) if known else "no answer"
        items.append(Item(question.id, question.level, float(not reason), reason=reason))
    settings = {
        "temperature": agent.temperature,
        "no-think mode": agent.prompting.no_think,
        "decomposed prompting": agent.prompting.decompose,
    }
    return evaluation(items, model or agent.label, left_out, **settings)


def evaluation(
    items: Sequence[Item], model: str, left_out: Sequence[str] = (), **settings: Any
) -> Evaluation:
    """Scored items with ResT's published rows beside them, in which `all` is the micro average over three levels."""
    return Evaluation("api-bank", model, tuple(items), tuple(left_out), PUBLISHED, settings)


def read_levels(paths: Sequence[str]) -> list[list[Question]]:
    """`read_level` of each; refuses two files of one level."""
    levels = [read_level(path) for path in paths]
    names = [questions[0].level for questions in levels]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"two files of --data are called {repeated!r}; give each level once, or name the files apart"
        )
    return levels


def read_level(path: str | Path) -> list[Question]:
    """The questions of a level's file; the level is named after it (`level-1.json`: `level-1`).

    Raises:
      UserError: a file that is missing, or holds a row that is no question; names the row and the field.
    """
    path = str(path)
    named = _LEVEL.search(stem_of(path))
    level = f"level-{named[1]}" if named else stem_of(path)
    questions = [_question(origin, i, level, row) for i, (origin, row) in enumerate(_rows(path))]
    if not questions:
        raise UserError(f"{path} holds no question; give a level's file, such as level-1.json")
    return questions


def score(questions: Sequence[Question], predictions: Predictions) -> tuple[Item, ...]:
    """An item for each question; one without an answer that counts is wrong."""
    items = []
    for question in questions:
        reason = predictions.problems.get(question.id)
        if reason is None and question.id not in predictions.answers:
            reason = "no prediction"
        if reason is None:
            reason = verdict(question, predictions.answers[question.id])
        items.append(Item(question.id, question.level, float(not reason), reason=reason))
    return tuple(items)


def read_answers(path: str | Path, questions: Sequence[Question]) -> Predictions:
    """The stored predictions of a level, by the row's place, or by `level-1_<place>`, or API-Bank's `<file>:<id>`."""
    aliases = {question.alias: question.id for question in questions if question.alias}
    for question in questions:
        aliases |= {f"{question.level}{mark}{question.id}": question.id for mark in "_-:#/"}
    return read_predictions(path, [question.id for question in questions], aliases)


def verdict(question: Question, answer: Any) -> str:
    """Why a prediction is wrong; empty where one of its calls equals the reference."""
    try:
        calls = calls_of(answer, question.tools)
    except Malformed as problem:
        return str(problem)
    if any(calls_equal([call], [wanted]) for call in calls for wanted in question.reference):
        return ""
    wanted = render_calls(question.reference, "python")
    found = f"{len(calls)} calls, none of them" if len(calls) > 1 else "another call than"
    return f"{found if calls else 'no call; wanted'} {wanted}"


def calls_of(answer: Any, tools: Iterable[str] = ()) -> tuple[Call, ...]:
    """The calls of a stored prediction: text in any notation that is read, API-Bank's own, calls as JSON, an assistant message.

    Raises:
      Malformed: an attempt at calls that cannot be read, or a value that is none of these.
    """
    if answer is None:
        return ()
    if isinstance(answer, str):
        return _calls_of_text(answer, tuple(tools))
    if isinstance(answer, list):
        return tuple(call for part in answer for call in calls_of(part, tools))
    if isinstance(answer, dict):
        if isinstance(answer.get("function"), dict):
            return calls_of(answer["function"], tools)
        if answer.get("tool_calls"):
            return calls_of(answer["tool_calls"], tools)
        if "name" in answer:
            return (_call(answer),)
        if "content" in answer:
            return calls_of(answer["content"], tools)
    raise Malformed(f"a prediction that is neither text nor calls: {answer!r:.60}")


def _calls_of_text(text: str, tools: tuple[str, ...]) -> tuple[Call, ...]:
    parsed, _ = parse_any_response(text, tools)
    if parsed.calls:
        return parsed.calls
    request = (parsed.reply if parsed.calls is not None else parsed.call_text).strip()
    call = _api_request(request.rpartition("API-Request:")[2].strip())
    if call is not None and (call.name in tools or not tools):
        return (call,)
    if parsed.calls is None:
        raise Malformed(f"a call that cannot be read: {parsed.error}")
    return ()


def _api_request(text: str) -> Call | None:
    """The call of a text in API-Bank's own notation; None where it is none.

    A value ends at a quote that the next parameter or the end follows; where the last one has no such end, an earlier one had a
    quote inside.
    """
    if len(text) > _LONGEST_REQUEST or not (found := _REQUEST.fullmatch(text)):
        return None
    inside = found[2].strip()
    parameters: list[tuple[int, re.Match[str]]] = []  # each with where it starts
    start = 0
    for following in _NEXT_PARAMETER.finditer(inside):
        if match := _PARAMETER.fullmatch(inside[start : following.start()]):
            parameters.append((start, match))
            start = following.end()
    last = _PARAMETER.fullmatch(inside[start:])
    while last is None and parameters:
        start, _ = parameters.pop()
        last = _PARAMETER.fullmatch(inside[start:])
    if last is None:
        return None if inside else Call(found[1], {})
    matches = [*(match for _, match in parameters), last]
    return Call(found[1], {match[1]: match[3] for match in matches})


def _call(value: Mapping[str, Any]) -> Call:
    arguments = value.get("parameters", value.get("arguments", {}))
    arguments = decode_json({} if arguments is None else arguments, "arguments that are not JSON")
    if not isinstance(value["name"], str) or not isinstance(arguments, dict):
        raise Malformed(f"a call without a name or with arguments that are no mapping: {value!r:.60}")
    return Call(value["name"], arguments)


def _rows(path: str) -> Iterable[tuple[str, Any]]:
    return file_rows(Path(path).name, local_file(path))


def _question(origin: str, place: int, level: str, row: Any) -> Question:
    if isinstance(row, Malformed):
        raise UserError(f"{origin}: {row}; a level's file must be whole")
    if not isinstance(row, dict) or not isinstance(row.get("user"), str):
        raise UserError(f'{origin}: a question needs a "user" text')
    try:
        reference = calls_of(decode_json(row.get("answer"), '"answer" is not JSON'))
    except Malformed as problem:
        raise UserError(f"{origin}: {problem}") from None
    if not reference:
        raise UserError(f'{origin}: "answer" holds no call to compare with')
    system = row.get("system") or ""
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": row["user"]})
    other = row["other"] if isinstance(row.get("other"), dict) else {}
    alias = f"{other['file']}:{other['id']}" if "file" in other and "id" in other else ""
    return Question(str(place), level, tuple(turns), reference, tuple(_TOOL.findall(system)), alias)
