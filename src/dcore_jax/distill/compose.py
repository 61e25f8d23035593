r"""Compose (D-CORE section 3.1): the assistant turns that SFT learns, "<think>\n...\n</think>\n\n" and then calls or words.

The templates write what stands between the tags. Whatever they and the model wrote, the turn is read back: it has to
satisfy the reward's format rule and hold exactly the calls that were verified.
"""

from collections.abc import Sequence

from dcore_jax.calls import Call, CallFormat, calls_equal, parse_response, render_calls
from dcore_jax.distill.ask import Message, Rejected, flaw_of
from dcore_jax.distill.reason import Solved
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.templates import Templates
from dcore_jax.distill.verify import written_calls
from dcore_jax.errors import UserError
from dcore_jax.rewards.dcore import follows_format


def sequential_turns(
    query: str,
    subtasks: Sequence[str],
    solved: Sequence[Solved],
    templates: Templates,
    call_format: CallFormat,
) -> list[Message]:
    """A turn for each solved subtask: the list of all, the recap of those before it, its thought, its call."""
    steps = [_step(step) for step in solved]
    turns = []
    for number, step in enumerate(steps, start=1):
        known = steps[: number - 1]
        thought = templates.render(
            "compose_sequential", query=query, subtasks=subtasks, solved=known, number=number, **step
        )
        turns.append(_turn(thought, [solved[number - 1].call], "", call_format))
    return turns


def parallel_turn(
    query: str,
    subtasks: Sequence[str],
    solved: Sequence[Solved],
    templates: Templates,
    call_format: CallFormat,
) -> Message:
    """One turn with every thought, then all calls in one bracket."""
    steps = [_step(step) for step in solved]
    thought = templates.render("compose_parallel", query=query, subtasks=subtasks, steps=steps)
    return _turn(thought, [step.call for step in solved], "", call_format)


def irrelevant_turn(
    query: str, explanation: str, answer: str, templates: Templates, call_format: CallFormat
) -> Message:
    """Why nothing is called, then the refusal or the question in words."""
    thought = templates.render("compose_irrelevant", query=query, explanation=explanation)
    return _turn(thought, [], answer, call_format)


def report_turn(query: str, answer: str, templates: Templates, call_format: CallFormat) -> Message:
    """That the tools have been used, then what the user is told."""
    return _turn(templates.render("compose_report", query=query, answer=answer), [], answer, call_format)


def record(sample: SeedSample, number: int, messages: Sequence[Message], tools: Sequence[dict]) -> dict:
    """A chat record that train_sft.py reads, with loss on its last turn."""
    return {
        "messages": list(messages),
        **({"tools": list(tools)} if tools else {}),
        "category": sample.kind,
        "loss_turns": "last",
        "id": f"{sample.id}/{number}",
        "source": sample.source,
    }


def _step(step: Solved) -> dict[str, str]:
    call = render_calls([step.call], "python")[1:-1]
    return {"description": step.description, "thought": step.thought, "call": call}


def _turn(thought: str, calls: Sequence[Call], words: str, call_format: CallFormat) -> Message:
    if "<think>" in thought or "</think>" in thought:
        raise Rejected("compose", "a thought tag inside the thought", thought)
    try:
        answer = render_calls(calls, call_format) if calls else words.strip()
    except UserError as error:
        raise Rejected("compose", "calls that cannot be written", str(error)) from None
    if call_format == "tags" and not calls:
        answer = f"<response>{answer}</response>"
    content = f"<think>\n{thought}\n</think>\n\n{answer}"
    read = parse_response(content, call_format)
    if not answer or not follows_format(content):
        raise Rejected("compose", "nothing to say after the thought", content)
    if flaw := flaw_of(content):
        raise Rejected("compose", f"a turn with {flaw}", content)
    # A turn of words may not call in any format: its learner would not know for which it is.
    if read.calls is None or not calls_equal(read.calls if calls else written_calls(content), calls):
        raise Rejected("compose", "the turn does not read back as what was verified", content)
    return {"role": "assistant", "content": content}
