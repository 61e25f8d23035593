"""Prompts with the calls that should answer them: from the tool world, and from files of any shape that `dcore_jax.data` reads.

A row with a reference (RL rows, xLAM, API-Bank, chat with `reference`) is one prompt. Of a conversation each assistant turn that
calls tools, or that answers a user without calling one, is a prompt (the messages before it) with its own calls as reference.

The notation in which a response is scored belongs to the prompt: the chat template's where the tools go to the template, that of
the row's own reference or instructions where the row brings them in its messages.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.calls import Call, CallFormat, instructed_notation, parse_any_response
from dcore_jax.data.chat_template import as_chat_template, render_chat
from dcore_jax.data.malformed import Malformed
from dcore_jax.data.record import Message, Record, Rejections
from dcore_jax.data.records import parse_any_record
from dcore_jax.data.sources import SourceCount, read_sources
from dcore_jax.toolworld import Task, to_record

REPORT = "report"  # the category of turns that say what the tools have answered
_OPEN_THOUGHT, _CLOSE_THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Question:
    """A conversation up to the assistant's turn, and what that turn should do."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None
    reference: tuple[Call, ...]  # empty: no call is expected
    expects_reply: bool | None  # whether it also speaks to the user; None: where it makes no call
    category: str
    origin: str
    call_format: CallFormat = "python"  # in which its responses are scored
    source: str = field(default="", compare=False)  # the data source as the user named it


@dataclass(frozen=True)
class Prompt:
    """A rendered question. `opening` is what the template already wrote of the turn: `<think>\\n`, or nothing."""

    ids: tuple[int, ...]
    text: str
    opening: str
    question: Question


def toolworld_questions(tasks: Sequence[Task], call_format: str, *, reports: bool = False) -> list[Question]:
    """The turns of tool-world tasks that call, or refuse; category is kind and number of calls, as `parallel 2`.

    With `reports` those too that say what the tools have answered, category `report`: they should call nothing more.
    """
    found = []
    for task in tasks:
        row = to_record(task, call_format=call_format)
        record = parse_any_record(row, origin=task.id, category=task.kind)[0]
        named = f"{task.kind} {len(task.reference)}"
        found += [
            replace(q, category=q.category if q.category == REPORT else named, call_format=call_format)
            for q in _turns(record, call_format, reports)
            if isinstance(q, Question)
        ]
    return found


def read_questions(
    paths: Iterable[str | Path],
    call_format: str,
    *,
    strict: bool = False,
    reports: bool = False,
    seed: int = 0,
    counts: dict[str, SourceCount] | None = None,
) -> tuple[list[Question], Rejections]:
    """Questions of data sources in their order, and what was left out, by reason; `reports` as in `toolworld_questions`.

    Args:
      call_format: the notation of prompts that bring none of their own: the chat template's.
      seed: chooses the rows of sources with a weight that is not whole; `counts` as in `dcore_jax.data.sources.read_sources`.

    Raises:
      UserError: a source that cannot be read; with `strict`, the first row that cannot be used.
    """
    rejections = Rejections(strict=strict)
    found = questions_in(paths, call_format, rejections, reports=reports, seed=seed, counts=counts)
    return list(found), rejections


def questions_in(
    paths: Iterable[str | Path],
    call_format: str,
    rejections: Rejections,
    *,
    reports: bool = False,
    seed: int = 0,
    counts: dict[str, SourceCount] | None = None,
) -> Iterator[Question]:
    """`read_questions` one by one; what is left out goes to `rejections`."""
    for origin, row, category, source in read_sources(paths, seed=seed, counts=counts):
        for question in questions_of(row, origin, category, call_format, reports=reports):
            if isinstance(question, Question):
                yield replace(question, source=source)
            else:
                rejections.add(question, origin)


def questions_of(
    row: Any, origin: str, category: str, call_format: str, *, reports: bool = False
) -> Iterator[Question | str]:
    """Yields the questions of a row, and a reason for each turn (or row) that makes none."""
    try:
        if isinstance(row, Malformed):
            raise row
        records = parse_any_record(row, origin=origin, category=category)
    except Malformed as reason:
        yield str(reason)
        return
    for record in records:
        if record.reference is None:
            yield from _turns(record, call_format, reports)
        elif not record.messages:
            yield "an empty prompt"
        else:
            yield _with_reference(record, call_format)


def render_prompts(
    questions: Sequence[Question], tokenizer: Any, *, max_length: int, rejections: Rejections
) -> list[Prompt]:
    """Token ids of each question by the chat template; too long ones and template failures go to `rejections`.

    Args:
      tokenizer: with a chat template, or a `ChatTemplate`.
    """
    template = as_chat_template(tokenizer)
    texts: list[str] = []
    kept: list[Question] = []
    for question in questions:
        try:
            text = render_chat(template, question.messages, question.tools, add_generation_prompt=True)
            _check_tools_shown(question, text)
        except Malformed as error:
            rejections.add(str(error), question.origin)
            continue
        texts.append(text)
        kept.append(question)
    if not texts:
        return []
    ids = template.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    prompts = []
    for question, text, tokens in zip(kept, texts, ids):
        if not tokens or len(tokens) > max_length:
            rejections.add(
                f"a prompt longer than {max_length} tokens" if tokens else "an empty prompt", question.origin
            )
            continue
        prompts.append(Prompt(tuple(map(int, tokens)), text, thought_opening(text), question))
    return prompts


def thought_opening(prompt: str) -> str:
    """What a prompt already holds of the turn: an open `<think>`, or the empty thought of a template with thinking off."""
    at = prompt.rfind(_OPEN_THOUGHT)
    if at < 0:
        return ""
    rest = prompt[at + len(_OPEN_THOUGHT) :]
    return prompt[at:] if not rest.replace(_CLOSE_THOUGHT, "", 1).strip() else ""


def prompt_order(count: int, seed: int, draws: range) -> list[int]:
    """Which prompt each draw takes: every epoch a new permutation of (seed, epoch), one epoch after the other."""
    chosen: list[int] = []
    order, epoch = np.arange(0), -1
    for draw in draws:
        if draw // count != epoch:
            epoch = draw // count
            order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen.append(int(order[draw % count]))
    return chosen


def _check_tools_shown(question: Question, text: str) -> None:
    """Raises Malformed where the template leaves out a tool: the model could not know of it."""
    for tool in question.tools or ():
        name = tool.get("function", tool).get("name")
        if isinstance(name, str) and name not in text:
            raise Malformed("the template leaves out the tools of the record")


def _with_reference(record: Record, call_format: str) -> Question:
    reference = record.reference
    assert reference is not None
    return Question(
        record.messages,
        record.tools,
        reference.calls,
        reference.expects_reply,
        record.category,
        record.origin,
        call_format if record.tools else reference.call_format or _own_notation(record) or call_format,
    )


def _own_notation(record: Record) -> CallFormat | None:
    """The notation that the messages of a record ask for, where its tools do not go to the template."""
    first = record.messages[0]
    if record.tools or first["role"] != "system":
        return None
    return instructed_notation(first.get("content") or "")


def _turns(record: Record, call_format: str, reports: bool) -> Iterator[Question | str]:
    """One question for each assistant turn that calls, or answers the user without a call (or reports, where that is asked
    for); a reason for each other one.
    """
    turns = [i for i, message in enumerate(record.messages) if message["role"] == "assistant"]
    names = [str(tool.get("function", tool).get("name")) for tool in record.tools or ()]
    parsed = {i: parse_any_response(record.messages[i].get("content") or "", names) for i in turns}
    # A refusal is scored in the notation of the record's other turns.
    written = next((notation for _, notation in parsed.values() if notation), None)
    scored = call_format if record.tools else written or _own_notation(record) or call_format
    for i in turns if record.loss_turns == "every" else turns[-1:]:
        message, before = record.messages[i], record.messages[:i]
        if record.turn_weights is not None and record.turn_weights[i] == 0:
            yield "a turn marked not to be trained"
            continue
        if not before:
            yield "an assistant turn before any request"
            continue
        response, notation = parsed[i]
        if response.calls is None:
            yield f"a reference turn that cannot be read: {response.error}"
            continue
        if structured := message.get("tool_calls"):
            if response.calls:
                yield "a reference turn with calls in its text beside tool_calls"
                continue
            calls = tuple(Call(**call["function"]) for call in structured)
        else:
            calls = response.calls
            if calls and notation is None and not record.tools:
                yield "a reference turn in a notation that no response can be scored in"
                continue
        if not calls and i + 1 in parsed:
            yield "words of the assistant before another of its messages"
            continue
        report = not calls and _is_tool_result(before[-1])
        if report and not reports:
            yield "a report on tool results, which makes no call (`--reports` takes it)"
            continue
        category = REPORT if report else record.category
        replies = bool(response.reply) if calls or response.reply else None  # `[]`: no call is expected
        yield Question(before, record.tools, calls, replies, category, record.origin, scored)


def _is_tool_result(message: Message) -> bool:
    return message["role"] == "tool" or (message.get("content") or "").lstrip().startswith("<tool_response>")
