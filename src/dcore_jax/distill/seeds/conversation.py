"""A conversation in any data set's words, and the seed samples that its turns make.

Readers turn a record into messages (`Said`); this file groups them into exchanges (a user message and all that
the assistant does until the next one) and makes of each exchange at most two samples: its calls, and the report
that closes them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dcore_jax.calls import Call, calls_equal, parse_calls, render_calls
from dcore_jax.data.files import Malformed
from dcore_jax.distill.kinds import detect_kind
from dcore_jax.distill.sample import Kind, SeedSample
from dcore_jax.distill.seeds.schemas import check_calls
from dcore_jax.errors import UserError

Message = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """One message as a reader found it; `text` of a tool is what it answered, to one call or to several."""

    role: Literal["user", "assistant", "tool"]
    text: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Step:
    """One assistant message with what the tools answered to it, in the order of the file."""

    words: str
    calls: tuple[Call, ...]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A user message and the assistant's steps up to the next one; no steps where nobody answered."""

    query: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A record of a data set.

    `last_only`: only the last assistant turn makes a sample; the earlier ones are other records' turns.
    `kind`: what the record itself says that its last exchange is; None to find out (kinds.py).
    """

    source: str
    origin: str
    policy: str
    tools: tuple[dict[str, Any], ...]
    exchanges: tuple[Exchange, ...]
    last_only: bool = False
    kind: Kind | None = None
    task: Any = field(default=None, compare=False)


def exchanges_of(messages: Iterable[Said]) -> tuple[Exchange, ...]:
    """Group messages by the user's turns. Raises `Malformed` for what has no place in a conversation."""
    found: list[Exchange] = []
    for message in messages:
        carried(message.calls)
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
    """The samples of a conversation in its order; a `Malformed` for each turn that makes none."""
    history: list[Message] = []
    last = len(conversation.exchanges) - 1
    for number, exchange in enumerate(conversation.exchanges):
        if number == last or not conversation.last_only:
            yield from _samples_of_exchange(conversation, exchange, history, number == last)
        history += _messages(exchange)


def with_id(sample: SeedSample) -> SeedSample:
    """The sample with the hash of its content as `id`: source, origin and task aside, so copies have equal ids."""
    content = [
        sample.kind,
        sample.policy,
        list(sample.tools),
        list(sample.history),
        sample.query,
        [[call.name, dict(call.arguments)] for call in sample.reference],
        list(sample.responses),
        sample.answer,
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())
    return replace(sample, id=digest.hexdigest()[:32])


def checked(sample: SeedSample) -> SeedSample:
    """The sample with its id. Raises `Malformed` unless its reference can be learned from.

    Its calls must fit the tools and survive being written and read; its responses must be one a call, or none.
    """
    if not sample.query.strip():
        raise Malformed("an empty request")
    check_calls(sample.reference, sample.tools)
    carried(sample.reference)
    if len(sample.responses) not in (0, len(sample.reference)):
        raise Malformed("another number of responses than of reference calls")
    try:
        return with_id(sample)
    except UnicodeEncodeError:
        raise Malformed("text with a lone surrogate") from None


def carried(calls: Sequence[Call]) -> None:
    """Raise `Malformed` unless the calls survive being written and read; what one format carries, all carry."""
    if not calls:
        return
    try:
        again = parse_calls(render_calls(calls, "python"), "python")
    except UserError:
        raise Malformed("calls that no call format can carry") from None
    if not calls_equal(again, calls):
        raise Malformed("calls that change when they are written and read")


def _samples_of_exchange(
    conversation: Conversation, exchange: Exchange, history: Sequence[Message], last: bool
) -> Iterator[SeedSample | Malformed]:
    calling, closing, problem = _split(exchange)
    if problem:
        yield Malformed(problem)
        return
    # A record says of which kind its calls are, or its words where it has no calls.
    kind = conversation.kind if last and not (calling and closing) else None
    if calling and not (closing and conversation.last_only):
        yield _made(conversation, exchange, history, kind, calling, None)
    if closing:
        yield _made(conversation, exchange, history, kind, calling, closing)


def _split(exchange: Exchange) -> tuple[tuple[Step, ...], Step | None, str]:
    """`(steps that call, closing words, reason to leave it out)`."""
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


def _made(
    conversation: Conversation,
    exchange: Exchange,
    history: Sequence[Message],
    kind: Kind | None,
    calling: Sequence[Step],
    closing: Step | None,
) -> SeedSample | Malformed:
    """The sample of an exchange's calls, or with `closing` of its closing words."""
    try:
        detected = detect_kind(
            [] if closing else [len(step.calls) for step in calling],
            closing.words if closing else "",
            tools_offered=bool(conversation.tools),
            answered=bool(calling),
            stated=kind,
        )
        reference = () if closing else tuple(call for step in calling for call in step.calls)
        words = closing.words if closing else "\n".join(filter(None, (step.words for step in calling)))
        report = detected == "report"
        return checked(
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
                answer=words,
                task=conversation.task,
            )
        )
    except Malformed as reason:
        return reason


def _responses(calling: Sequence[Step]) -> tuple[str, ...]:
    """One response a call; an empty one for each call of a last message that the record leaves unanswered."""
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
    """One answer a call, `()` where there are none, None where it cannot be told which is whose.

    Either each call has its own, or one answer holds a JSON list with an item a call. Items that name their
    tools (`{"name": ..., "results": ...}`) go by name where the names are distinct, and by their order else.
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
        wanted = [call.name for call in calls]
        if len(set(wanted)) == len(wanted) and sorted(map(str, names)) == sorted(wanted):
            items = [items[names.index(name)] for name in wanted]
        return tuple(json.dumps(item, ensure_ascii=False) for item in items)
    return tuple(answers) if len(answers) == len(calls) else None


def _items(answer: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else []


def _messages(exchange: Exchange) -> list[Message]:
    """The exchange as OpenAI-style messages."""
    messages: list[Message] = [{"role": "user", "content": exchange.query}]
    for step in exchange.steps:
        message: Message = {"role": "assistant", "content": step.words}
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
