"""Algorithm 1 of D-CORE (arXiv 2602.02160) for one sample, read from top to bottom.

A generator that yields questions and is sent their answers (ask.py). The same answers give the same questions and the same
outcome, so an interrupted run resumes by replaying the answers in its journal.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dcore_jax.calls import Call, parse_response, render_calls, split_thought
from dcore_jax.data.files import Malformed
from dcore_jax.data.tool_schemas import check_calls
from dcore_jax.distill import compose
from dcore_jax.distill.act import check_answerable, recorded_responses, respond, start_environment
from dcore_jax.distill.ask import Ask, Message, Rejected, Stage, require_ended
from dcore_jax.distill.config import DistillConfig
from dcore_jax.distill.conversation import call_turn, opening_messages, template_tools
from dcore_jax.distill.decompose import check_count, check_leaks, decompose_ask, read_subtasks
from dcore_jax.distill.labels import ask_for_label, find_label
from dcore_jax.distill.reason import SolvedSubtask, solve_apart, solve_subtask
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.distill.templates import Templates
from dcore_jax.distill.verify import verify, verify_no_call
from dcore_jax.errors import UserError

LAST_TEXT = 2_000  # characters kept of a rejected answer


@dataclass(frozen=True)
class Method:
    """What all samples of a run share: settings, prompts and pseudo-labels."""

    config: DistillConfig
    templates: Templates
    labels: Mapping[str, tuple[Call, ...]] | None = None  # by sample id; None: the labelling model is asked


@dataclass
class _Progress:
    """What an attempt reached, for the outcome of a rejected sample."""

    subtasks: tuple[str, ...] = ()


def distill(sample: SeedSample, method: Method) -> Stage[Outcome]:
    """From a seed sample to its outcome, in at most `config.attempts` attempts, each with new seeds.

    An attempt that was rejected before a model said anything is the last one: other seeds would change nothing.
    """
    prompt_tokens: Counter[str] = Counter()
    generated_tokens: Counter[str] = Counter()
    rejection = Rejected("decompose", "no attempt")
    for attempt in range(method.config.attempts):
        progress, answered = _Progress(), False
        stage = _attempt(sample, method, attempt, progress)
        # The questions of the attempt are passed on by hand, not by `yield from`, to count the tokens of their answers.
        try:
            asks = next(stage)
            while True:
                answers = yield asks
                for ask, answer in zip(asks, answers, strict=True):
                    prompt_tokens[ask.stage] += answer.prompt_tokens
                    generated_tokens[ask.stage] += answer.generated_tokens
                    answered = answered or answer.finish_reason != "overlong"
                asks = stage.send(answers)
        except StopIteration as end:
            return Outcome(
                sample,
                "done",
                "",
                attempt + 1,
                progress.subtasks,
                end.value,
                dict(prompt_tokens),
                dict(generated_tokens),
            )
        except Rejected as reason:
            rejection = reason
            if not answered:
                break
    return Outcome(
        sample,
        rejection.stage,
        rejection.reason,
        attempt + 1,
        progress.subtasks,
        (),
        dict(prompt_tokens),
        dict(generated_tokens),
        rejection.text[:LAST_TEXT],
    )


def _attempt(
    sample: SeedSample, method: Method, attempt: int, progress: _Progress
) -> Stage[tuple[dict, ...]]:
    """One pass of Algorithm 1; returns the records of an accepted sample. Raises Rejected."""
    if sample.kind == "report":
        return _report(sample, method)
    if sample.kind in ("irrelevant", "missing"):
        return (yield from _irrelevant(sample, method, attempt))
    config = method.config
    if config.mode == "pseudo":
        sample = yield from _replace_reference(sample, method, attempt)
    apart = sample.kind == "parallel" and config.parallel_apart
    if not apart:
        check_answerable(sample, config.act)
    subtasks = yield from _decompose(sample, method, attempt)
    progress.subtasks = subtasks
    if apart:
        solved = yield from _solve_apart(sample, method, subtasks, attempt)
        responses: tuple[str, ...] = ()
    else:
        solved, responses = yield from _solve_in_order(sample, method, subtasks, attempt)
    verify(sample.kind, [step.call for step in solved], sample.reference, config.preset, solved[-1].text)
    return _records(sample, method, subtasks, solved, responses)


def _replace_reference(sample: SeedSample, method: Method, attempt: int) -> Stage[SeedSample]:
    """The sample with pseudo-labels as its reference, and with the recorded responses to those of them that were recorded.

    Raises Rejected with stage `label` for labels that do not fit the tools or that cannot be written.
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
    if sample.turns and len(calls) != len(sample.reference):
        raise Rejected("label", "another number of calls than the record's turns hold", repr(calls))
    return replace(sample, reference=calls, responses=recorded_responses(sample, calls))


def _decompose(sample: SeedSample, method: Method, attempt: int) -> Stage[tuple[str, ...]]:
    """The subtasks, as many as reference calls. Raises Rejected with stage `decompose` or `count`."""
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
) -> Stage[tuple[list[SolvedSubtask], tuple[str, ...]]]:
    """Solves one subtask after the other; each sees the calls and responses before it. Returns both."""
    config = method.config
    environment = start_environment(sample, config.act)
    messages = opening_messages(sample, method.templates, config.call_format)
    solved: list[SolvedSubtask] = []
    responses: list[str] = []
    for number, description in enumerate(subtasks):
        messages.append(_subtask_message(description, sample, method))
        step = yield from solve_subtask(
            description,
            messages,
            template_tools(sample, method.templates),
            subtask=number,
            first_attempt=attempt * config.tries,
            tries=config.tries,
            call_format=config.call_format,
        )
        solved.append(step)
        # A chain with a wrong call can never pass: reject it now, not at its end.
        if sample.kind in ("sequential", "mixed"):
            calls = [step.call for step in solved]
            verify(sample.kind, calls, sample.reference[: len(calls)], config.preset, step.text)
        if number + 1 < len(subtasks):
            responses += respond(environment, [step.call])
            messages += call_turn([step.call], responses[-1:], config.call_format)
    return solved, tuple(responses)


def _solve_apart(
    sample: SeedSample, method: Method, subtasks: tuple[str, ...], attempt: int
) -> Stage[list[SolvedSubtask]]:
    """Solves all subtasks at the same time; none sees another."""
    config = method.config
    before = opening_messages(sample, method.templates, config.call_format)
    return (
        yield from solve_apart(
            subtasks,
            [[*before, _subtask_message(description, sample, method)] for description in subtasks],
            template_tools(sample, method.templates),
            first_attempt=attempt * config.tries,
            tries=config.tries,
            call_format=config.call_format,
        )
    )


def _records(
    sample: SeedSample,
    method: Method,
    subtasks: tuple[str, ...],
    solved: list[SolvedSubtask],
    responses: tuple[str, ...],
) -> tuple[dict, ...]:
    """Composed records: for a chain one per turn, with earlier calls in its history; for parallel calls a single one."""
    templates, call_format = method.templates, method.config.call_format
    messages = [*opening_messages(sample, templates, call_format), {"role": "user", "content": sample.query}]
    tools = template_tools(sample, templates)
    if sample.kind == "parallel":
        turn = compose.parallel_turn(sample.query, subtasks, solved, templates, call_format)
        return (compose.record(sample, 0, [*messages, turn], tools),)
    records = []
    if sample.kind == "mixed":
        turns = compose.mixed_turns(sample.query, subtasks, solved, sample.turns, templates, call_format)
    else:
        turns = compose.sequential_turns(sample.query, subtasks, solved, templates, call_format)
    for number, (turn, made) in enumerate(zip(turns, _chain_turns(sample), strict=True)):
        records.append(compose.record(sample, number, [*messages, turn], tools))
        if made[-1] < len(responses):
            calls = [solved[i].call for i in made]
            messages += call_turn(calls, [responses[i] for i in made], call_format)
    return tuple(records)


def _chain_turns(sample: SeedSample) -> Sequence[Sequence[int]]:
    """The indices in the reference of each turn's calls: one a turn, unless the sample says otherwise."""
    return sample.turns or [(i,) for i in range(len(sample.reference))]


def _irrelevant(sample: SeedSample, method: Method, attempt: int) -> Stage[tuple[dict, ...]]:
    """The record of a refusal. Paper: the model explains why no tool serves, without a call. Release: a fixed text."""
    config, templates = method.config, method.templates
    before = opening_messages(sample, templates, config.call_format)
    explanation, answer = "", sample.answer.strip()
    if config.preset == "paper":
        question = {"role": "user", "content": templates.render("irrelevant", query=sample.query)}
        (reply,) = yield (
            Ask("reason", (*before, question), template_tools(sample, templates), attempt=attempt),
        )
        require_ended("reason", reply)
        parsed = parse_response(reply.text, config.call_format)
        if not reply.text.strip():
            raise Rejected("reason", "empty")
        if parsed.calls is None:
            raise Rejected("reason", f"calls that cannot be read: {parsed.error}", reply.text)
        verify(sample.kind, parsed.calls, (), config.preset, reply.text)
        verify_no_call(split_thought(reply.text)[1], sample.tools, reply.text)
        explanation, answer = parsed.thought or parsed.reply, answer or parsed.reply
        if not explanation:
            raise Rejected("reason", "no thought", reply.text)
    turn = compose.irrelevant_turn(
        sample.query,
        explanation,
        answer or templates.render("refusal"),
        templates,
        config.call_format,
        missing=sample.kind == "missing",
    )
    messages = [*before, {"role": "user", "content": sample.query}, turn]
    return (compose.record(sample, 0, messages, template_tools(sample, templates)),)


def _report(sample: SeedSample, method: Method) -> tuple[dict, ...]:
    """The record of a recorded report, whose history ends with the tools' answers; no model is asked."""
    call_format = method.config.call_format
    turn = compose.report_turn(sample.query, sample.answer, method.templates, call_format)
    messages = [*opening_messages(sample, method.templates, call_format), turn]
    return (compose.record(sample, 0, messages, template_tools(sample, method.templates)),)


def _subtask_message(description: str, sample: SeedSample, method: Method) -> Message:
    """The user turn that asks for one subtask."""
    text = method.templates.render("reason", description=description, query=sample.query)
    return {"role": "user", "content": text}
