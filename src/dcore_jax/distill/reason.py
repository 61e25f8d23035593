"""Reason (D-CORE section 3.1): a thought and a call for each subtask.

Subtasks solved in order share one conversation: each is a user turn, followed by its call (without the thought) and the
tool's response. Subtasks solved apart see the history and nothing of one another.
"""

from typing import NamedTuple

from dcore_jax.calls import Call, CallFormat, parse_response
from dcore_jax.distill.ask import Answer, Ask, Message, Rejected, Stage, find_flaw, require_ended


class SolvedSubtask(NamedTuple):
    """A subtask with the model's thought and call."""

    description: str
    thought: str  # R_i
    call: Call  # tau_i
    text: str  # the whole answer


def parse_solution(description: str, answer: Answer, call_format: CallFormat) -> SolvedSubtask:
    """Splits the answer at `</think>` into thought and call. Raises Rejected with stage `reason`."""
    require_ended("reason", answer)
    parsed = parse_response(answer.text, call_format)
    if not answer.text.strip():
        raise Rejected("reason", "empty")
    if parsed.calls is None:
        raise Rejected("reason", f"calls that cannot be read: {parsed.error}", answer.text)
    if not parsed.thought:
        raise Rejected("reason", "no thought", answer.text)
    if flaw := find_flaw(parsed.thought):
        raise Rejected("reason", f"a thought with {flaw}", answer.text)
    if len(parsed.calls) != 1:
        raise Rejected("reason", "several calls for one subtask" if parsed.calls else "no call", answer.text)
    return SolvedSubtask(description, parsed.thought, parsed.calls[0], answer.text)


def solve_subtask(
    description: str,
    messages: list[Message],
    tools: tuple[dict, ...],
    *,
    subtask: int,
    first_attempt: int,
    tries: int,
    call_format: CallFormat,
) -> Stage[SolvedSubtask]:
    """Asks until an answer can be parsed, at most `tries` times.

    Args:
      messages: the conversation, which ends with the subtask's user turn.
      subtask: number of the subtask, from 0; part of the question's key.
      first_attempt: number of the first try; part of the question's key.

    Raises:
      Rejected: the last answer could not be parsed either.
    """
    for attempt in range(first_attempt, first_attempt + tries):
        (answer,) = yield (Ask("reason", tuple(messages), tools, subtask, attempt),)
        try:
            return parse_solution(description, answer, call_format)
        except Rejected as reason:
            last = reason
    raise last


def solve_apart(
    descriptions: tuple[str, ...],
    messages: list[list[Message]],
    tools: tuple[dict, ...],
    *,
    first_attempt: int,
    tries: int,
    call_format: CallFormat,
) -> Stage[list[SolvedSubtask]]:
    """Asks for all subtasks at the same time, each in its own conversation, and again for those that failed.

    Args:
      messages: one conversation per subtask.
      first_attempt: number of the first try; part of the questions' keys.

    Raises:
      Rejected: a subtask failed in every try; that of the first such subtask.
    """
    solved: dict[int, SolvedSubtask] = {}
    failed: dict[int, Rejected] = {}
    for attempt in range(first_attempt, first_attempt + tries):
        unsolved = [i for i in range(len(descriptions)) if i not in solved]
        asks = tuple(Ask("reason", tuple(messages[i]), tools, i, attempt) for i in unsolved)
        answers = yield asks
        for i, answer in zip(unsolved, answers, strict=True):
            try:
                solved[i] = parse_solution(descriptions[i], answer, call_format)
                failed.pop(i, None)
            except Rejected as reason:
                failed[i] = reason
        if not failed:
            return [solved[i] for i in range(len(descriptions))]
    raise failed[min(failed)]
