r"""Compose (D-CORE section 3.1): the assistant turns that SFT learns, "<think>\n...\n</think>\n\n" and then calls or text.

The templates write the thought between the tags. The finished turn is parsed again: it must satisfy the reward's format
rule and hold exactly the verified calls, whatever templates and model wrote.
"""

from collections.abc import Sequence

from dcore_jax.calls import Call, CallFormat, calls_equal, parse_response, render_calls
from dcore_jax.distill.ask import Message, Rejected, find_flaw
from dcore_jax.distill.reason import SolvedSubtask
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.templates import Templates
from dcore_jax.distill.verify import written_calls
from dcore_jax.errors import UserError
from dcore_jax.rewards.dcore import follows_format


def sequential_turns(
    query: str,
    subtasks: Sequence[str],
    solved: Sequence[SolvedSubtask],
    templates: Templates,
    call_format: CallFormat,
) -> list[Message]:
    """One turn per solved subtask: the list of all subtasks, a recap of those before it, its thought, its call."""
    steps = [_template_values(step) for step in solved]
    turns = []
    for number, step in enumerate(steps, start=1):
        earlier = steps[: number - 1]
        thought = templates.render(
            "compose_sequential", query=query, subtasks=subtasks, solved=earlier, number=number, **step
        )
        turns.append(_assistant_turn(thought, [solved[number - 1].call], "", call_format))
    return turns


def parallel_turn(
    query: str,
    subtasks: Sequence[str],
    solved: Sequence[SolvedSubtask],
    templates: Templates,
    call_format: CallFormat,
) -> Message:
    """One turn with every thought, then all calls in one bracket."""
    steps = [_template_values(step) for step in solved]
    thought = templates.render("compose_parallel", query=query, subtasks=subtasks, steps=steps)
    return _assistant_turn(thought, [step.call for step in solved], "", call_format)


def mixed_turns(
    query: str,
    subtasks: Sequence[str],
    solved: Sequence[SolvedSubtask],
    turns: Sequence[Sequence[int]],
    templates: Templates,
    call_format: CallFormat,
) -> list[Message]:
    """One message per turn: the list of all subtasks, a recap of those before it, the turn's thoughts, then its calls.

    Args:
      turns: indices in `solved` of each turn's subtasks, in order.
    """
    steps = [_template_values(step) for step in solved]
    messages = []
    for turn in turns:
        thought = templates.render(
            "compose_mixed",
            query=query,
            subtasks=subtasks,
            solved=steps[: turn[0]],
            number=turn[0] + 1,
            steps=[steps[i] for i in turn],
        )
        messages.append(_assistant_turn(thought, [solved[i].call for i in turn], "", call_format))
    return messages


def irrelevant_turn(
    query: str,
    explanation: str,
    answer: str,
    templates: Templates,
    call_format: CallFormat,
    *,
    missing: bool = False,
) -> Message:
    """One turn that explains why nothing is called, then refuses or asks back."""
    thought = templates.render("compose_irrelevant", query=query, explanation=explanation, missing=missing)
    return _assistant_turn(thought, [], answer, call_format)


def report_turn(query: str, answer: str, templates: Templates, call_format: CallFormat) -> Message:
    """One turn that says that the tools have answered, then the report to the user."""
    return _assistant_turn(
        templates.render("compose_report", query=query, answer=answer), [], answer, call_format
    )


def record(sample: SeedSample, number: int, messages: Sequence[Message], tools: Sequence[dict]) -> dict:
    """A chat record for SFT, with loss on its last turn only."""
    return {
        "messages": list(messages),
        **({"tools": list(tools)} if tools else {}),
        "category": sample.kind,
        "loss_turns": "last",
        "id": f"{sample.id}/{number}",
        "source": sample.source,
    }


def _template_values(step: SolvedSubtask) -> dict[str, str]:
    call = render_calls([step.call], "python")[1:-1]
    return {"description": step.description, "thought": step.thought, "call": call}


def _assistant_turn(thought: str, calls: Sequence[Call], text: str, call_format: CallFormat) -> Message:
    """The message of a thought, then its calls or, without any, a text. Raises Rejected where it does not parse as that."""
    if "<think>" in thought or "</think>" in thought:
        raise Rejected("compose", "a thought tag inside the thought", thought)
    try:
        answer = render_calls(calls, call_format) if calls else text.strip()
    except UserError as error:
        raise Rejected("compose", "calls that cannot be written", str(error)) from None
    if call_format == "tags" and not calls:
        answer = f"<response>{answer}</response>"
    content = f"<think>\n{thought}\n</think>\n\n{answer}"
    parsed = parse_response(content, call_format)
    if not answer or not follows_format(content):
        raise Rejected("compose", "nothing to say after the thought", content)
    if flaw := find_flaw(content):
        raise Rejected("compose", f"a turn with {flaw}", content)
    # A turn without calls must not read as a call in any of the formats: the text would teach calling where none is meant.
    if parsed.calls is None or not calls_equal(parsed.calls if calls else written_calls(content), calls):
        raise Rejected("compose", "the turn does not read back as what was verified", content)
    return {"role": "assistant", "content": content}
