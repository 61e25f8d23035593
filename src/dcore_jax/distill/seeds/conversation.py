"""From conversations to seed samples, the same for every data set.

Readers parse a record into messages (`ParsedMessage`). This module groups them into exchanges (a user message and all
that the assistant does until the next one) and makes at most two samples of each exchange: its calls, and the report
at its end.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from dcore_jax.calls import Call, calls_equal, parse_calls, render_calls
from dcore_jax.data.files import Malformed, decode_json
from dcore_jax.data.tool_schemas import check_calls
from dcore_jax.distill.kinds import detect_kind
from dcore_jax.distill.sample import Kind, SeedSample
from dcore_jax.errors import UserError

Message = dict[str, Any]


@dataclass(frozen=True)
class ParsedMessage:
    """A message as a reader parsed it; the text of a tool message answers one call or several."""

    role: Literal["user", "assistant", "tool"]
    text: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Step:
    """One assistant message with the tools' answers to it, in the order of the file."""

    text: str
    calls: tuple[Call, ...]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A user message and the assistant's steps up to the next one; no steps where it was not answered."""

    query: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A record of a data set as a conversation."""

    source: str
    origin: str
    policy: str
    tools: tuple[dict[str, Any], ...]
    exchanges: tuple[Exchange, ...]
    last_only: bool = (
        False  # only the last assistant turn makes a sample; the earlier ones are turns of other records
    )
    kind: Kind | None = None  # of the last exchange, where the record states it; None: detected (kinds.py)
    task: Any = field(default=None, compare=False)  # that `execute` acts in


def exchanges_of(messages: Iterable[ParsedMessage]) -> tuple[Exchange, ...]:
    """Groups messages by user turns.

    Raises:
      Malformed: a message that is out of place, or calls that cannot be written.
    """
    found: list[Exchange] = []
    for message in messages:
        check_round_trip(message.calls)
        if message.role == "user":
            found.append(Exchange(message.text))
            continue
        if not found:
            raise Malformed(f"a message of the {message.role} before any request")
        steps = found[-1].steps
        if message.role == "assistant":
            steps += (Step(message.text, message.calls),)
        elif not steps or not steps[-1].calls:
            raise Malformed("a tool's response without a call")
        else:
            steps = (*steps[:-1], replace(steps[-1], answers=(*steps[-1].answers, message.text)))
        found[-1] = replace(found[-1], steps=steps)
    return tuple(found)


def samples_of(conversation: Conversation) -> Iterator[SeedSample | Malformed]:
    """Yields the samples of a conversation in order, and a `Malformed` for each turn that makes none."""
    history: list[Message] = []
    last = len(conversation.exchanges) - 1
    for number, exchange in enumerate(conversation.exchanges):
        if number == last or not conversation.last_only:
            yield from _samples_of_exchange(conversation, exchange, history, number == last)
        history += _messages(exchange)


def with_id(sample: SeedSample) -> SeedSample:
    """The sample with a hash of its content as `id`; source, origin and task are not hashed, so copies have equal ids."""
    content = [
        sample.kind,
        sample.policy,
        list(sample.tools),
        list(sample.history),
        sample.query,
        [[call.name, dict(call.arguments)] for call in sample.reference],
        list(sample.responses),
        sample.answer,
        *([list(map(list, sample.turns))] if sample.turns else []),
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())
    return replace(sample, id=digest.hexdigest()[:32])


def validated(sample: SeedSample) -> SeedSample:
    """The sample with its id, if it is fit for training.

    Its calls must fit the tools and pass `check_round_trip`; its responses must be one per call, or none.

    Raises:
      Malformed: with the reason why it is not.
    """
    if not sample.query.strip():
        raise Malformed("an empty request")
    check_calls(sample.reference, sample.tools)
    check_round_trip(sample.reference)
    if len(sample.responses) not in (0, len(sample.reference)):
        raise Malformed("another number of responses than of reference calls")
    try:
        return with_id(sample)
    except UnicodeEncodeError:
        raise Malformed("text with a lone surrogate") from None


def check_round_trip(calls: Sequence[Call]) -> None:
    """Raises `Malformed` unless writing and parsing the calls gives equal calls.

    Tested in one call format: a value that one can hold, all can.
    """
    if not calls:
        return
    try:
        parsed = parse_calls(render_calls(calls, "python"), "python")
    except UserError:
        raise Malformed("calls that no call format can carry") from None
    if not calls_equal(parsed, calls):
        raise Malformed("calls that change when they are written and read")


def _samples_of_exchange(
    conversation: Conversation, exchange: Exchange, history: Sequence[Message], last: bool
) -> Iterator[SeedSample | Malformed]:
    calling, closing, problem = _split_exchange(exchange)
    if problem:
        yield Malformed(problem)
        return
    # A stated kind is that of the calls, or of the text where there are no calls; with both it would be ambiguous.
    kind = conversation.kind if last and not (calling and closing) else None
    if calling and not (closing and conversation.last_only):
        yield _make_sample(conversation, exchange, history, kind, calling, None)
    if closing:
        yield _make_sample(conversation, exchange, history, kind, calling, closing)


def _split_exchange(exchange: Exchange) -> tuple[tuple[Step, ...], Step | None, str]:
    """`(steps that call, closing text, reason to leave the exchange out)`."""
    steps = exchange.steps
    if not steps:
        return (), None, "a request without an answer"
    closing = steps[-1] if not steps[-1].calls else None
    calling = steps[:-1] if closing else steps
    if any(not step.calls for step in calling):
        return (), None, "words of the assistant amid its calls"
    if closing and calling and not calling[-1].answers:
        return (), None, "a report on calls whose responses were not recorded"
    return calling, closing, ""


def _make_sample(
    conversation: Conversation,
    exchange: Exchange,
    history: Sequence[Message],
    kind: Kind | None,
    calling: Sequence[Step],
    closing: Step | None,
) -> SeedSample | Malformed:
    """The sample of an exchange's calls or, with `closing`, of its closing text."""
    try:
        detected = detect_kind(
            [] if closing else [len(step.calls) for step in calling],
            closing.text if closing else "",
            tools_offered=bool(conversation.tools),
            answered=bool(calling),
            stated=kind,
        )
        reference = () if closing else tuple(call for step in calling for call in step.calls)
        text = closing.text if closing else "\n".join(filter(None, (step.text for step in calling)))
        report = detected == "report"
        return validated(
            SeedSample(
                id="",
                source=conversation.source,
                origin=conversation.origin,
                kind=detected,
                policy=conversation.policy,
                tools=conversation.tools,
                history=(*history, *_messages(Exchange(exchange.query, tuple(calling))))
                if report
                else tuple(history),
                query=exchange.query,
                reference=reference,
                responses=() if closing else _responses(calling),
                answer=text,
                task=conversation.task,
                turns=_turn_indices(calling) if detected == "mixed" else (),
            )
        )
    except Malformed as reason:
        return reason


def _turn_indices(calling: Sequence[Step]) -> tuple[tuple[int, ...], ...]:
    """The indices of each step's calls among the calls of all."""
    ends = list(accumulate(len(step.calls) for step in calling))
    return tuple(tuple(range(end - len(step.calls), end)) for end, step in zip(ends, calling, strict=True))


def _responses(calling: Sequence[Step]) -> tuple[str, ...]:
    """One response per call, or none; empty ones for the calls of a last message that was not answered."""
    if not any(step.answers for step in calling):
        if len(calling) > 1:
            raise Malformed("a chain of calls whose responses were not recorded")
        return ()
    matched = [match_answers(step.calls, step.answers) for step in calling]
    if any(found is None for found in matched):
        raise Malformed("responses that cannot be matched to the calls")
    if any(not found for found in matched[:-1]):
        raise Malformed("a chain of calls whose responses were not recorded")
    return tuple(text for step, found in zip(calling, matched) for text in (found or ("",) * len(step.calls)))


def match_answers(calls: Sequence[Call], answers: Sequence[str]) -> tuple[str, ...] | None:
    """One answer per call; `()` without answers, None where they cannot be assigned to calls.

    Either each call has its own answer, or one answer is a JSON list with one item per call. Items that name their
    tools (`{"name": ..., "results": ...}`) are assigned by name where names are distinct, otherwise by order.
    """
    if not answers:
        return ()
    if len(answers) == 1:
        items = _items(answers[0])
        if len(calls) == 1 and (len(items) != 1 or items[0].get("name") != calls[0].name):
            return tuple(answers)
        if len(items) != len(calls):
            return None
        names = [item.get("name") for item in items]
        called = [call.name for call in calls]
        if len(set(called)) == len(called) and sorted(map(str, names)) == sorted(called):
            items = [items[names.index(name)] for name in called]
        return tuple(json.dumps(item, ensure_ascii=False) for item in items)
    return tuple(answers) if len(answers) == len(calls) else None


def _items(answer: str) -> list[dict[str, Any]]:
    """The objects of an answer that is a JSON list of objects; none of another answer."""
    try:
        value = decode_json(answer, "not JSON")
    except Malformed:
        return []
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else []


def _messages(exchange: Exchange) -> list[Message]:
    """The exchange as OpenAI-style messages."""
    messages: list[Message] = [{"role": "user", "content": exchange.query}]
    for step in exchange.steps:
        message: Message = {"role": "assistant", "content": step.text}
        if step.calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in step.calls
            ]
        messages.append(message)
        answers = match_answers(step.calls, step.answers)
        if answers:
            messages += [
                {"role": "tool", "name": call.name, "content": text}
                for call, text in zip(step.calls, answers)
            ]
        else:
            messages += [{"role": "tool", "content": text} for text in step.answers]
    return messages
