"""Evaluation on tool-world tasks: the model calls, reads the tools' answers, and calls again.

A task is solved when the calls of all turns together are exactly the reference calls: in order for sequential and mixed
tasks (calls that share a turn of the reference in any order), in any order for parallel ones, none for irrelevant and missing
ones. Beside it stands a second count, by the state that the calls leave and the facts that the report gives.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from dcore_jax import load_hf
from dcore_jax.calls import JSON, Call, CallFormat, calls_equal, render_calls
from dcore_jax.data.chat_template import chat_template
from dcore_jax.engines.engine import Engine, Request, Sample, SamplingParams
from dcore_jax.engines.native import NativeEngine
from dcore_jax.errors import UserError
from dcore_jax.player import (
    BatchEngine,
    History,
    Limits,
    Opening,
    Played,
    Rerender,
    Session,
    Turn,
    new_rerender,
    play,
)
from dcore_jax.toolworld import Task, ToolWorld, generate_tasks, opening_messages
from dcore_jax.toolworld.task import MAX_SUBTASKS
from dcore_jax.weights import stop_token_ids

_LENGTH = 1024  # tokens of a task's whole conversation, as the nano models were trained
_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Attempt:
    """A model's turns and calls for a task."""

    task: Task
    turns: tuple[str, ...]  # the assistant's, as sampled
    calls: tuple[Call, ...]  # of all turns, in order
    error: str | None  # why a turn could not be parsed, or that too many turns were made
    final_state: JSON = None  # after all calls
    reply: str = ""  # the last turn's, without its thought

    @property
    def solved(self) -> bool:
        """Whether the calls are exactly the reference calls, and every turn could be parsed."""
        if self.error is not None or len(self.calls) != len(self.task.reference):
            return False
        parts = self.task.turns if self.task.kind in ("sequential", "mixed") else (range(len(self.calls)),)
        return all(
            calls_equal([self.calls[i] for i in part], [self.task.reference[i] for i in part], ordered=False)
            for part in parts
        )

    @property
    def solved_by_state(self) -> bool:
        """Whether the calls leave the reference's final state and the reply gives its report's facts, in any order.

        Other calls on the way do not matter. Where no call serves the request, there must be none, and the reply must be
        the reference's answer.
        """
        if self.error is not None or self.final_state != self.task.final_state:
            return False
        if not self.task.reference:
            return not self.calls and self.reply.strip() == self.task.answer
        return _facts(self.reply) == _facts(self.task.answer)


class TaskSession(Session):
    """A task as a conversation: its tools run on a world of its own, and nobody says more than the request."""

    instant = True  # the tools do a bounded amount of work

    def __init__(self, task: Task, call_format: CallFormat):
        self.id, self.task, self.world = task.id, task, ToolWorld()
        self._call_format = call_format

    def open(self) -> Opening:
        """The task's request in the world's initial state."""
        self.world.reset(self.task)
        return Opening(opening_messages(self.task, self._call_format), self.task.tools)

    def call(self, call: Call) -> str:
        """What the world answers."""
        return self.world.call(call).content

    def reward(self) -> float:
        """By state: 1 where the world is as the reference leaves it. Calls and reply are judged by `Attempt`."""
        return float(self.world.state == self.task.final_state)


def solve(
    tasks: Sequence[Task],
    generate: Callable[[Sequence[Request]], list[Sample]],
    tokenizer: Any,
    *,
    call_format: CallFormat = "python",
    sampling: SamplingParams | None = None,
    max_turns: int = 8,
    progress: bool = False,
) -> list[Attempt]:
    """Lets the model solve all tasks at the same time, one turn of each after the other.

    A conversation ends with a turn that makes no call or cannot be parsed, and after `max_turns`.

    Args:
      generate: an engine's: requests in, samples out in the same order. For an engine itself: `play_tasks`.
      tokenizer: with a chat template, or a `ChatTemplate`.
      sampling: None: greedy, at most 256 tokens a turn.

    Raises:
      UserError: the chat template fails on a task.
    """
    sampling = sampling or SamplingParams(max_tokens=256, temperature=0.0)
    history = training_history(tokenizer, call_format)
    limits = Limits(
        max_tokens=sampling.max_tokens, max_turns=max_turns, max_length=_NO_LIMIT, at_once=max(1, len(tasks))
    )
    return play_tasks(tasks, BatchEngine(generate), history, limits, sampling=sampling, progress=progress)


def training_history(tokenizer: Any, call_format: CallFormat) -> Rerender:
    """History as in training records: every prompt is rendered anew, with calls in the content and without thoughts."""

    def message_of(turn: Turn) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": render_calls(turn.calls, call_format) if turn.calls else turn.text,
        }

    return new_rerender(tokenizer, call_format=call_format, message_of=message_of)


def play_tasks(
    tasks: Sequence[Task],
    engine: Engine,
    history: History,
    limits: Limits,
    *,
    sampling: SamplingParams | None = None,
    progress: bool = False,
) -> list[Attempt]:
    """Plays every task with that engine; arguments as of `player.play`.

    Raises:
      UserError: the chat template fails on a task.
    """
    call_format = getattr(history, "call_format", None) or "python"
    sessions = [TaskSession(task, call_format) for task in tasks]
    played = play(sessions, engine, history, limits, sampling=sampling, progress=progress, desc="solving")
    return [_attempt(session, one) for session, one in zip(sessions, played, strict=True)]


def _attempt(session: TaskSession, played: Played) -> Attempt:
    task = session.task
    if played.ended == "failed":
        raise UserError(f"task {task.id}: {played.error}")
    last = played.turns[-1] if played.turns else None
    error = last.error if last is not None else None
    if played.ended == "turns":
        error = "too many turns"
    elif played.ended == "length":
        error = error or "the conversation is too long"
    texts = tuple(turn.text for turn in played.turns)
    reply = last.parsed.reply if last is not None else ""
    return Attempt(task, texts, played.calls, error, session.world.state, reply)


def accuracy_table(stages: Mapping[str, Sequence[Attempt]]) -> str:
    """The share of solved tasks by kind and number of calls, as text: one column per model, one row per group, and totals.

    The last row counts all tasks by final state and facts (`Attempt.solved_by_state`) instead of by calls.

    Args:
      stages: attempts by the model's name, at the same tasks.
    """
    width = max(10, *(len(name) + 2 for name in stages))
    first = next(iter(stages.values()))
    groups: dict[str, Callable[[Attempt], bool]] = {}
    for kind, calls in sorted({(a.task.kind, len(a.task.reference)) for a in first}):
        groups[f"{kind:<12}{calls:>6}"] = partial(_in_group, kind, calls)
    groups["3 or more calls   "] = lambda attempt: len(attempt.task.reference) >= 3
    groups["all               "] = lambda attempt: True
    lines = [f"{'kind':<12}{'calls':>6}{'tasks':>7}" + "".join(f"{name:>{width}}" for name in stages)]
    for label, belongs in groups.items():
        number = sum(map(belongs, first))
        shares = "".join(f"{_share(filter(belongs, attempts)):>{width}.0%}" for attempts in stages.values())
        lines.append(f"{label}{number:>7}{shares}" if number else f"{label}{number:>7}")
    by_state = (
        sum(a.solved_by_state for a in attempts) / max(len(attempts), 1) for attempts in stages.values()
    )
    lines.append(
        f"{'all, by state':<18}{len(first):>7}" + "".join(f"{share:>{width}.0%}" for share in by_state)
    )
    return "\n".join(lines)


def transcript(attempt: Attempt) -> str:
    """A task, its reference calls and the model's turns, as text."""
    calls = attempt.task.reference
    wanted = ", ".join(f"{call.name}({dict(call.arguments)})" for call in calls) or "no call"
    lines = [f"asked     {attempt.task.query}", f"wanted    {wanted}"]
    return "\n".join([*lines, *(f"answered  {' '.join(turn.split())}" for turn in attempt.turns)])


def attempt_held_out(
    model: Path,
    *,
    tasks: int,
    subtasks: tuple[int, int] = (1, MAX_SUBTASKS),
    seed: int = 0,
    families: Sequence[str] | None = None,
) -> list[Attempt]:
    """Greedy attempts of a Hugging Face folder's model at the test split of the tool world, with a progress bar.

    `families` are those of its training; None: all. Other splits and options: `attempt_tasks`.
    """
    items = generate_tasks(tasks, seed=seed, split="test", subtasks=subtasks, families=families)
    return attempt_tasks(model, items)


def attempt_tasks(model: Path, tasks: Sequence[Task]) -> list[Attempt]:
    """Greedy attempts of a Hugging Face folder's model at these tasks, with a progress bar."""
    from transformers import AutoTokenizer

    decoder, tokenizer = load_hf(model), AutoTokenizer.from_pretrained(model)
    ends = sorted(stop_token_ids(Path(model), tokenizer))
    engine = NativeEngine(decoder, slots=32, max_length=_LENGTH, eos_token_ids=ends)
    template = chat_template(tokenizer, began=datetime.now())  # one date for all tasks
    limits = Limits(max_length=_LENGTH, max_tokens=256, max_turns=8)
    attempts = play_tasks(tasks, engine, training_history(template, "python"), limits, progress=True)
    engine.close()
    return attempts


def _facts(text: str) -> list[str]:
    """The values and numbers of a report, sorted."""
    return sorted(re.findall(r"\b(?:[a-z]\d|\d+)\b", text))


def _in_group(kind: str, calls: int, attempt: Attempt) -> bool:
    return attempt.task.kind == kind and len(attempt.task.reference) == calls


def _share(attempts: Iterable[Attempt]) -> float:
    solved = [attempt.solved for attempt in attempts]
    return sum(solved) / max(len(solved), 1)
