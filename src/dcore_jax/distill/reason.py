"""Reason (D-CORE section 3.1): a thought and a call for each subtask, or a thought on why no call serves.

Subtasks in order stand in one conversation: each is a user turn, answered by the call alone and what the tool said.
Subtasks apart see the history and nothing of one another.
"""

from typing import NamedTuple

from dcore_jax.calls import Call, CallFormat, parse_response
from dcore_jax.distill.ask import Answer, Ask, Message, Rejected, Stage, flaw_of, require_ended


class Solved(NamedTuple):
    """A subtask with what the model made of it."""

    description: str
    thought: str  # R_i
    call: Call  # tau_i
    text: str  # the answer as it came


def read_solved(description: str, answer: Answer, call_format: CallFormat) -> Solved:
    """Splits the answer at `</think>` into thought and call. Raises Rejected with stage `reason`."""
    require_ended("reason", answer)
    parsed = parse_response(answer.text, call_format)
    if not answer.text.strip():
        raise Rejected("reason", "empty")
    if parsed.calls is None:
        raise Rejected("reason", f"calls that cannot be read: {parsed.error}", answer.text)
    if not parsed.thought:
        raise Rejected("reason", "no thought", answer.text)
    if flaw := flaw_of(parsed.thought):
        raise Rejected("reason", f"a thought with {flaw}", answer.text)
    if len(parsed.calls) != 1:
        raise Rejected("reason", "several calls for one subtask" if parsed.calls else "no call", answer.text)
    return Solved(description, parsed.thought, parsed.calls[0], answer.text)


def solve_subtask(
    description: str,
    messages: list[Message],
    tools: tuple[dict, ...],
    *,
    subtask: int,
    first_attempt: int,
    tries: int,
    call_format: CallFormat,
) -> Stage[Solved]:
    """Asks until an answer can be read, at most `tries` times. Raises what the last answer was rejected for."""
    for attempt in range(first_attempt, first_attempt + tries):
        (answer,) = yield (Ask("reason", tuple(messages), tools, subtask, attempt),)
        try:
            return read_solved(description, answer, call_format)
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
) -> Stage[list[Solved]]:
    """All subtasks side by side, each in its own messages; raises the rejection of the first that failed for good."""
    solved: dict[int, Solved] = {}
    failed: dict[int, Rejected] = {}
    for attempt in range(first_attempt, first_attempt + tries):
        left = [i for i in range(len(descriptions)) if i not in solved]
        asks = tuple(Ask("reason", tuple(messages[i]), tools, i, attempt) for i in left)
        answers = yield asks
        for i, answer in zip(left, answers, strict=True):
            try:
                solved[i] = read_solved(descriptions[i], answer, call_format)
                failed.pop(i, None)
            except Rejected as reason:
                failed[i] = reason
        if not failed:
            return [solved[i] for i in range(len(descriptions))]
    raise failed[min(failed)]
