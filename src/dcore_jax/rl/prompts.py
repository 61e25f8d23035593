"""Prompts with the calls that should answer them: from the tool world, from files of RL prompts, from conversations.

Rows come in three forms, told apart by their fields:

- RL prompts (ToolRL's rlla): `prompt` (messages) and `reward_model.ground_truth` (the answer in the `tags` format);
- chat with a reference: `messages`, optionally `tools`, and `reference`, a list of `{"name", "arguments"}`;
- conversations, everything that `dcore_jax.data` reads: each assistant turn that calls tools, or that answers a user without
  calling one, is a prompt (the messages before it) with its own calls as reference.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.calls import Call, as_calls, parse_response
from dcore_jax.data.chat_template import as_chat_template, render_chat
from dcore_jax.data.files import Malformed, file_rows, local_file
from dcore_jax.data.records import Message, Record, Rejections, parse_record
from dcore_jax.errors import UserError
from dcore_jax.toolworld import Task, to_record

REPORT = "report"  # the category of turns that say what the tools have answered
_OPEN_THOUGHT = "<think>"


@dataclass(frozen=True)
class Question:
    """A conversation up to the assistant's turn, and what that turn should do."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None
    reference: tuple[Call, ...]  # empty: no call is expected
    expects_reply: bool | None  # whether it also speaks to the user; None: where it makes no call
    category: str
    origin: str


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
        record = parse_record(row, origin=task.id, category=task.kind)[0]
        named = f"{task.kind} {len(task.reference)}"
        found += [
            replace(q, category=q.category if q.category == REPORT else named)
            for q in _turns(record, call_format, reports)
            if isinstance(q, Question)
        ]
    return found


def read_questions(
    paths: Iterable[str | Path], call_format: str, *, strict: bool = False, reports: bool = False
) -> tuple[list[Question], Rejections]:
    """Questions of files in file order, and what was left out, by reason; `reports` as in `toolworld_questions`.

    Raises:
      UserError: a file that cannot be read; with `strict`, the first row that cannot be used.
    """
    rejections = Rejections(strict=strict)
    found: list[Question] = []
    for path in paths:
        name, local = str(path), local_file(str(path))
        for origin, row in file_rows(name, local):
            try:
                for question in _questions(row, origin, local.stem, call_format, reports):
                    if isinstance(question, Question):
                        found.append(question)
                    else:
                        rejections.add(question, origin)
            except Malformed as reason:
                rejections.add(str(reason), origin)
    return found, rejections


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
        opened = text.rstrip("\n").endswith(_OPEN_THOUGHT)
        opening = text[text.rindex(_OPEN_THOUGHT) :] if opened else ""
        prompts.append(Prompt(tuple(map(int, tokens)), text, opening, question))
    return prompts


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


def _questions(
    row: Any, origin: str, category: str, call_format: str, reports: bool
) -> Iterator[Question | str]:
    if isinstance(row, Malformed):
        raise row
    if not isinstance(row, dict):
        raise Malformed(f"a row must be a JSON object, not {type(row).__name__}")
    row = {key: value for key, value in row.items() if value is not None}
    if {"prompt", "reward_model"} <= row.keys():
        yield _rl_prompt(row, origin, str(row.get("data_source", category)))
    elif "reference" in row:
        yield _with_reference(row, origin, category)
    else:
        for record in parse_record(row, origin=origin, category=category):
            yield from _turns(record, call_format, reports)


def _record_of(messages: Any, tools: Any, origin: str, category: str) -> Record:
    """The record reader's checks for a conversation that waits for its answer: one is put there, and taken off again."""
    if not isinstance(messages, list):
        raise Malformed(f"messages must be a list, not {type(messages).__name__}")
    row = {"messages": [*messages, {"role": "assistant", "content": "?"}], "tools": tools}
    record = parse_record(row, origin=origin, category=category)[0]
    asked = record.messages[:-1]
    if not asked or asked[-1]["role"] == "assistant":
        raise Malformed("messages that do not wait for the assistant")
    return Record(asked, record.tools, category, origin)


def _rl_prompt(row: dict[str, Any], origin: str, category: str) -> Question:
    record = _record_of(row["prompt"], row.get("tools"), origin, category)
    truth = row["reward_model"].get("ground_truth") if isinstance(row["reward_model"], dict) else None
    if isinstance(truth, list):
        return Question(record.messages, record.tools, _reference(truth), None, category, origin)
    if not isinstance(truth, str):
        raise Malformed("reward_model.ground_truth is neither text nor a list of calls")
    parsed = parse_response(truth, "tags")
    if parsed.calls is None:
        raise Malformed(f"a ground truth that cannot be read: {parsed.error}")
    return Question(record.messages, record.tools, parsed.calls, bool(parsed.reply), category, origin)


def _with_reference(row: dict[str, Any], origin: str, category: str) -> Question:
    record = _record_of(row.get("messages"), row.get("tools"), origin, str(row.get("category", category)))
    if not isinstance(row["reference"], list):
        raise Malformed("reference must be a list of calls")
    replies = row.get("expects_reply")
    if replies is not None and not isinstance(replies, bool):
        raise Malformed("expects_reply must be true or false")
    calls = _reference(row["reference"])
    return Question(record.messages, record.tools, calls, replies, record.category, origin)


def _reference(items: list[Any]) -> tuple[Call, ...]:
    try:
        return as_calls(items)
    except UserError as error:
        raise Malformed(str(error)) from None


def _turns(record: Record, call_format: str, reports: bool) -> Iterator[Question | str]:
    """One question for each assistant turn that calls, or answers the user without a call (or reports, where that is asked
    for); a reason for each other one.
    """
    turns = [i for i, message in enumerate(record.messages) if message["role"] == "assistant"]
    for i in turns if record.loss_turns == "every" else turns[-1:]:
        message, before = record.messages[i], record.messages[:i]
        if not before:
            yield "an assistant turn before any request"
            continue
        if "tool_calls" in message:
            calls = tuple(Call(**call["function"]) for call in message["tool_calls"])
            replies = bool(parse_response(message["content"], "qwen").reply)
        else:
            parsed = parse_response(message["content"], call_format)
            if parsed.calls is None:
                yield f"a reference turn that cannot be read as {call_format}: {parsed.error}"
                continue
            calls, replies = parsed.calls, bool(parsed.reply)
        report = not calls and _is_tool_result(before[-1])
        if report and not reports:
            yield "a report on tool results, which makes no call (`--reports` takes it)"
            continue
        category = REPORT if report else record.category
        yield Question(before, record.tools, calls, replies, category, record.origin)


def _is_tool_result(message: Message) -> bool:
    return message["role"] == "tool" or message["content"].lstrip().startswith("<tool_response>")
