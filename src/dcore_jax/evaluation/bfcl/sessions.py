"""The benchmark's questions as sessions of the player: its turns, its tools, its way to read calls, its limit of steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dcore_jax.calls import Call, ParsedResponse
from dcore_jax.evaluation.bfcl.client import Answers
from dcore_jax.evaluation.bfcl.rendering import split_response
from dcore_jax.evaluation.bfcl.styles import Style
from dcore_jax.player import Opening, Played, Session, Turn
from dcore_jax.player.session import Message


@dataclass(frozen=True)
class Question:
    """One item to be answered.

    Args:
      index: in its category.
      turns: messages of each turn; of a single-turn category one.
      functions: shown as tools in function-calling mode.
    """

    id: str
    category: str
    index: int
    turns: tuple[tuple[Message, ...], ...]
    functions: tuple[Any, ...] = ()

    @property
    def multi_turn(self) -> bool:
        """Whether calls are run and answered."""
        return "multi_turn" in self.category


def questions_of(client: Answers, category: str, function_calling: bool) -> list[Question]:
    """A category's questions as the benchmark's handler asks them."""
    prompts = client.ask("prompts", category=category, function_calling=function_calling)
    return [
        Question(
            prompt["id"],
            category,
            index,
            tuple(tuple(turn) for turn in prompt["turns"]),
            tuple(prompt["functions"]),
        )
        for index, prompt in enumerate(prompts)
    ]


@dataclass
class BFCLSession(Session):
    """One question under way. A turn goes on while steps make calls; then the next turn's messages follow.

    Args:
      client: the process that runs the tools.
      key: names the session there.
      step_limit: steps of calls in a turn, past which the whole item ends.
      openai_tools: functions as OpenAI tools, for a chat template; else as they are, for the handlers' rendering.
    """

    question: Question
    client: Answers
    style: Style
    key: str
    step_limit: int
    openai_tools: bool = False
    turns: list[list[str]] = field(default_factory=lambda: [[]])
    thoughts: list[list[str]] = field(default_factory=lambda: [[]])
    steps: int = 0
    instant = True  # the process answers at once, and limits its tools itself

    def __post_init__(self) -> None:
        self.id = self.question.id

    def open(self) -> Opening:
        """The first turn."""
        if self.question.multi_turn:
            self.client.ask(
                "open", session=self.key, category=self.question.category, index=self.question.index
            )
        functions: list[Any] = list(self.question.functions)
        if self.openai_tools:
            functions = [{"type": "function", "function": function} for function in functions]
        return Opening(list(self.question.turns[0]), functions or None)

    def parse(self, text: str) -> ParsedResponse:
        """Reads a step as the benchmark does, and keeps it."""
        answer, thought = split_response(text)
        self.turns[-1].append(answer)
        self.thoughts[-1].append(thought)
        calls: Sequence[str] = ()
        if self.question.multi_turn:
            calls = self.client.ask("calls_of", step=answer, style=self.style.request())
        return ParsedResponse(thought or None, tuple(_as_call(call) for call in calls), answer)

    def call(self, call: Call) -> str:
        """Runs one call."""
        return str(self.client.ask("run_call", session=self.key, call=call.arguments["call"]))

    @property
    def done(self) -> bool:
        """Whether the turn took more steps than the benchmark allows."""
        self.steps += 1
        return self.steps > self.step_limit

    def reply(self, turn: Turn) -> list[Message] | None:
        """The next turn's messages."""
        if len(self.turns) == len(self.question.turns):
            return None
        self.steps = 0
        self.turns.append([])
        self.thoughts.append([])
        return list(self.question.turns[len(self.turns) - 1])

    def close(self) -> None:
        """Forgets the tools."""
        if self.question.multi_turn:
            self.client.ask("close", session=self.key)


def result_row(played: Played) -> dict[str, Any]:
    """A conversation as the benchmark stores it: `id`, `result`, token counts, `reasoning_content`.

    One that could not be played to its end is stored as the benchmark's error text, which scores as no call.
    """
    session = played.session
    assert isinstance(session, BFCLSession)
    question = session.question
    if played.ended in ("failed", "length") or not played.turns:
        why = played.error or "the conversation does not fit into the model's length"
        return {"id": question.id, "result": f"Error during inference: {why}"}
    prompts, outputs = iter([t.prompt_length for t in played.turns]), iter([len(t.ids) for t in played.turns])
    if not question.multi_turn:
        row = {
            "result": session.turns[0][0],
            "input_token_count": next(prompts),
            "output_token_count": next(outputs),
        }
        return {
            "id": question.id,
            **row,
            **({"reasoning_content": t} if (t := session.thoughts[0][0]) else {}),
        }
    counts = [[(next(prompts), next(outputs)) for _ in steps] for steps in session.turns]
    row = {
        "result": session.turns,
        "input_token_count": [[a for a, _ in steps] for steps in counts],
        "output_token_count": [[b for _, b in steps] for steps in counts],
    }
    if any(thought for steps in session.thoughts for thought in steps):
        row["reasoning_content"] = session.thoughts
    return {"id": question.id, **row}


def _as_call(call: str) -> Call:
    """A call of the benchmark, which stays a string until its process rebuilds it."""
    return Call(call.partition("(")[0], {"call": call})
