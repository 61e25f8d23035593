"""Algorithm 1 of D-CORE (arXiv 2602.02160) for one sample, read from top to bottom.

It yields questions and is sent answers (ask.py); given the same answers it does the same again, which is how an
interrupted run goes on from its journal.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dcore_jax.calls import Call, parse_response, render_calls, split_thought
from dcore_jax.data.files import Malformed
from dcore_jax.distill import compose
from dcore_jax.distill.act import check_answerable, recorded_responses, respond, started
from dcore_jax.distill.ask import Ask, Message, Rejected, Stage, require_ended
from dcore_jax.distill.config import DistillConfig
from dcore_jax.distill.conversation import called, offered, opening
from dcore_jax.distill.decompose import check_count, check_leaks, decompose_ask, read_subtasks
from dcore_jax.distill.labels import ask_for_label, find_label
from dcore_jax.distill.reason import Solved, solve_apart, solve_subtask
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.distill.seeds.schemas import check_calls
from dcore_jax.distill.templates import Templates
from dcore_jax.distill.verify import verify, verify_no_call
from dcore_jax.errors import UserError

LAST_TEXT = 2_000  # characters of a rejected answer that are kept


@dataclass(frozen=True)
class Method:
    """What is the same for every sample of a run."""

    config: DistillConfig
    templates: Templates
    labels: Mapping[str, tuple[Call, ...]] | None = None  # by sample id; None: the labeller is asked


@dataclass
class _Attempt:
    subtasks: tuple[str, ...] = ()


def distill(sample: SeedSample, method: Method) -> Stage[Outcome]:
    """From a seed sample to its outcome, in at most `attempts` attempts with seeds of their own.

    An attempt that ended before a model said anything would end in the same way again: it is the last.
    """
    prompt_tokens: Counter[str] = Counter()
    generated_tokens: Counter[str] = Counter()
    rejection = Rejected("decompose", "no attempt")
    for attempt in range(method.config.attempts):
        notes, heard = _Attempt(), False
        stage = _attempt(sample, method, attempt, notes)
        try:
            asks = next(stage)
            while True:
                answers = yield asks
                for ask, answer in zip(asks, answers, strict=True):
                    prompt_tokens[ask.stage] += answer.prompt_tokens
                    generated_tokens[ask.stage] += answer.generated_tokens
                    heard = heard or answer.finish_reason != "overlong"
                asks = stage.send(answers)
        except StopIteration as end:
            return Outcome(
                sample,
                "done",
                "",
                attempt + 1,
                notes.subtasks,
                end.value,
                dict(prompt_tokens),
                dict(generated_tokens),
            )
        except Rejected as reason:
            rejection = reason
            if not heard:
                break
    return Outcome(
        sample,
        rejection.stage,
        rejection.reason,
        attempt + 1,
        notes.subtasks,
        (),
        dict(prompt_tokens),
        dict(generated_tokens),
        rejection.text[:LAST_TEXT],
    )


def _attempt(sample: SeedSample, method: Method, attempt: int, notes: _Attempt) -> Stage[tuple[dict, ...]]:
    """One pass of Algorithm 1: the records of an accepted sample. Raises Rejected."""
    if sample.kind == "report":
        return _report(sample, method)
    if sample.kind == "irrelevant":
        return (yield from _irrelevant(sample, method, attempt))
    config = method.config
    if config.mode == "pseudo":
        sample = yield from _relabelled(sample, method, attempt)
    apart = sample.kind == "parallel" and config.parallel_apart
    if not apart:
        check_answerable(sample, config.act)
    subtasks = yield from _decompose(sample, method, attempt)
    notes.subtasks = subtasks
    if apart:
        solved = yield from _solve_apart(sample, method, subtasks, attempt)
        responses: tuple[str, ...] = ()
    else:
        solved, responses = yield from _solve_in_order(sample, method, subtasks, attempt)
    verify(sample.kind, [step.call for step in solved], sample.reference, config.preset, solved[-1].text)
    return _records(sample, method, subtasks, solved, responses)


def _relabelled(sample: SeedSample, method: Method, attempt: int) -> Stage[SeedSample]:
    """The sample with labels for its reference, and with the recorded responses that still belong to them.

    Raises Rejected with stage `label` for labels that the tools do not take or that cannot be written.
    """
    config = method.config
    if method.labels is not None:
        calls = find_label(sample, method.labels, config.labels)
    else:
        calls = yield from ask_for_label(sample, method.templates, config.call_format, config.act, attempt)
    try:
        check_calls(calls, sample.tools)
        render_calls(calls, config.call_format)
    except Malformed as problem:
        raise Rejected("label", str(problem).replace("reference", "label"), repr(calls)) from None
    except UserError as problem:
        raise Rejected("label", "calls that cannot be written", str(problem)) from None
    return replace(sample, reference=calls, responses=recorded_responses(sample, calls))


def _decompose(sample: SeedSample, method: Method, attempt: int) -> Stage[tuple[str, ...]]:
    config, shown = method.config, method.config.mode != "none"
    (answer,) = yield (
        decompose_ask(
            sample,
            sample.reference if shown else None,
            method.templates,
            examples=config.examples if config.mode in ("examples", "pseudo") else 0,
            plain=config.plain_decompose,
            attempt=attempt,
        ),
    )
    subtasks = read_subtasks(answer, needs_index=shown, calls=len(sample.reference) if shown else None)
    check_count(subtasks, len(sample.reference), answer)
    if config.reject_leaks:
        check_leaks(subtasks, sample, sample.reference, answer)
    return subtasks


def _solve_in_order(
    sample: SeedSample, method: Method, subtasks: tuple[str, ...], attempt: int
) -> Stage[tuple[list[Solved], tuple[str, ...]]]:
    """One subtask after the other; each sees the calls before it and what the tools answered."""
    config = method.config
    environment = started(sample, config.act)
    messages = opening(sample, method.templates, config.call_format)
    solved: list[Solved] = []
    responses: list[str] = []
    for number, description in enumerate(subtasks):
        messages.append(_request(description, sample, method))
        step = yield from solve_subtask(
            description,
            messages,
            offered(sample, method.templates),
            subtask=number,
            first_attempt=attempt * config.tries,
            tries=config.tries,
            call_format=config.call_format,
        )
        solved.append(step)
        if sample.kind == "sequential":  # what differs here can never be verified: no need to go on
            calls = [step.call for step in solved]
            verify(sample.kind, calls, sample.reference[: len(calls)], config.preset, step.text)
        if number + 1 < len(subtasks):
            responses += respond(environment, [step.call])
            messages += called([step.call], responses[-1:], config.call_format)
    return solved, tuple(responses)


def _solve_apart(
    sample: SeedSample, method: Method, subtasks: tuple[str, ...], attempt: int
) -> Stage[list[Solved]]:
    """All subtasks side by side, none seeing another."""
    config = method.config
    before = opening(sample, method.templates, config.call_format)
    return (
        yield from solve_apart(
            subtasks,
            [[*before, _request(description, sample, method)] for description in subtasks],
            offered(sample, method.templates),
            first_attempt=attempt * config.tries,
            tries=config.tries,
            call_format=config.call_format,
        )
    )


def _records(
    sample: SeedSample,
    method: Method,
    subtasks: tuple[str, ...],
    solved: list[Solved],
    responses: tuple[str, ...],
) -> tuple[dict, ...]:
    """One record a subtask for a chain, with the calls before it in the history; one in all for the parallel kind."""
    templates, call_format = method.templates, method.config.call_format
    messages = [*opening(sample, templates, call_format), {"role": "user", "content": sample.query}]
    tools = offered(sample, templates)
    if sample.kind == "parallel":
        turn = compose.parallel_turn(sample.query, subtasks, solved, templates, call_format)
        return (compose.record(sample, 0, [*messages, turn], tools),)
    records = []
    turns = compose.sequential_turns(sample.query, subtasks, solved, templates, call_format)
    for number, turn in enumerate(turns):
        records.append(compose.record(sample, number, [*messages, turn], tools))
        if number < len(responses):
            messages += called([solved[number].call], responses[number : number + 1], call_format)
    return tuple(records)


def _irrelevant(sample: SeedSample, method: Method, attempt: int) -> Stage[tuple[dict, ...]]:
    """Paper: the model explains why no tool serves, and may not call any. Release: a fixed text, no question asked."""
    config, templates = method.config, method.templates
    before = opening(sample, templates, config.call_format)
    explanation, answer = "", sample.answer.strip()
    if config.preset == "paper":
        asked = {"role": "user", "content": templates.render("irrelevant", query=sample.query)}
        (said,) = yield (Ask("reason", (*before, asked), offered(sample, templates), attempt=attempt),)
        require_ended("reason", said)
        parsed = parse_response(said.text, config.call_format)
        if not said.text.strip():
            raise Rejected("reason", "empty")
        if parsed.calls is None:
            raise Rejected("reason", f"calls that cannot be read: {parsed.error}", said.text)
        verify("irrelevant", parsed.calls, (), config.preset, said.text)
        verify_no_call(split_thought(said.text)[1], sample.tools, said.text)
        explanation, answer = parsed.thought or parsed.reply, answer or parsed.reply
        if not explanation:
            raise Rejected("reason", "no thought", said.text)
    turn = compose.irrelevant_turn(
        sample.query, explanation, answer or templates.render("refusal"), templates, config.call_format
    )
    messages = [*before, {"role": "user", "content": sample.query}, turn]
    return (compose.record(sample, 0, messages, offered(sample, templates)),)


def _report(sample: SeedSample, method: Method) -> tuple[dict, ...]:
    """No question: the history ends with what the tools answered, and the report is recorded."""
    call_format = method.config.call_format
    turn = compose.report_turn(sample.query, sample.answer, method.templates, call_format)
    messages = [*opening(sample, method.templates, call_format), turn]
    return (compose.record(sample, 0, messages, offered(sample, method.templates)),)


def _request(description: str, sample: SeedSample, method: Method) -> Message:
    text = method.templates.render("reason", description=description, query=sample.query)
    return {"role": "user", "content": text}
