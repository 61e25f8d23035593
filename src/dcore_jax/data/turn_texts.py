"""The texts of a conversation's assistant turns, each as inference sees it: what is before the turn, and the turn.

What is before a turn is what a server sends to the model: the messages before it with the generation prompt. Where a template
renders prefix-stably, these texts are beginnings of one another and of the whole conversation, which then is one sequence with
all turns in it. Qwen3's drops the thoughts of earlier questions, so there each question is a sequence of its own, or each turn.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dcore_jax.data.chat_template import ChatTemplate, render_chat
from dcore_jax.data.files import Malformed
from dcore_jax.data.records import Message

UNSTABLE = "template not prefix-stable (the turn does not continue its own prompt)"
FIRST = "an assistant turn before any request, for which the template writes no prompt"
Tools = tuple[dict[str, Any], ...] | None


class TurnText(NamedTuple):
    """A turn of a sequence."""

    turn: int  # index of its message
    before: str  # from the sequence's start, or its last turn, up to this turn
    text: str  # the turn, and what the template writes after it


def single_turn(template: ChatTemplate, messages: Sequence[Message], turn: int, tools: Tools) -> TurnText:
    """One turn with the whole conversation before it.

    Raises:
      Malformed: the template fails, or the turn does not continue its own prompt.
    """
    try:
        prompt = render_chat(template, messages[:turn], tools, add_generation_prompt=True)
    except Malformed:
        if turn:
            raise
        raise Malformed(FIRST) from None
    whole = render_chat(template, messages[: turn + 1], tools)
    if not whole.startswith(prompt):
        raise Malformed(UNSTABLE)
    return TurnText(turn, prompt, whole[len(prompt) :])


def one_sequence(
    template: ChatTemplate, messages: Sequence[Message], turns: Sequence[int], tools: Tools
) -> list[TurnText] | None:
    """Turns that follow one another in one text, each as `single_turn` has it; None where the template has them otherwise.

    The whole is rendered once. What each turn looks like at inference is rendered in full for the turns 0, 1, 2, 4, 8, ... and
    the last, and for the others without the messages between their question and the turn before: so a long conversation costs
    its length a few times over, and not once for each turn.

    Args:
      turns: indices of assistant messages, with every one between the first and the last.
    """
    try:
        whole, at, found = render_chat(template, messages[: turns[-1] + 1], tools), 0, []
        for number, turn in enumerate(turns):
            if number & (number - 1) == 0 or number == len(turns) - 1:
                single = single_turn(template, messages, turn, tools)
                if not whole.startswith(single.before) or len(single.before) < at:
                    return None
                piece = TurnText(turn, single.before[at:], single.text)
            else:
                piece = _after(template, messages, turns[number - 1], turn, tools)
            if not whole.startswith(piece.before + piece.text, at):
                return None
            found.append(piece)
            at += len(piece.before) + len(piece.text)
    except Malformed:
        return None
    return found if at == len(whole) else None


def questions(messages: Sequence[Message], turns: Sequence[int]) -> list[list[int]]:
    """The turns by the question that they answer: a user's message that is no tool result begins a new one."""
    groups: list[list[int]] = []
    for number, turn in enumerate(turns):
        since = turns[number - 1] + 1 if number else 0
        if not groups or any(map(is_question, messages[since:turn])):
            groups.append([])
        groups[-1].append(turn)
    return groups


def is_question(message: Message) -> bool:
    """Whether a message is a user's own: a user turn may also be how a record writes the results of tools."""
    content = message.get("content")
    return message["role"] == "user" and not (
        isinstance(content, str) and content.lstrip().startswith("<tool_response>")
    )


def _after(
    template: ChatTemplate, messages: Sequence[Message], previous: int, turn: int, tools: Tools
) -> TurnText:
    """A turn behind the one before it, rendered with the system message and the question alone before that one."""
    asked = next((i for i in range(previous - 1, -1, -1) if is_question(messages[i])), None)
    head = [0] if messages[0]["role"] in ("system", "developer") and previous > 0 else []
    kept = [messages[i] for i in sorted({*head, *([] if asked is None else [asked])})]
    start = render_chat(template, [*kept, messages[previous]], tools)
    single = single_turn(
        template, [*kept, *messages[previous : turn + 1]], len(kept) + turn - previous, tools
    )
    if not single.before.startswith(start):
        raise Malformed(UNSTABLE)
    return TurnText(turn, single.before[len(start) :], single.text)
