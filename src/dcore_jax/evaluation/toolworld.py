"""Tool-world tasks solved by a model that acts: it calls, reads what the tools answer, and calls again.

A task is solved when the calls of all turns together are exactly the reference calls: in order for sequential tasks, in
any order for the others, none for irrelevant ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dcore_jax import load_hf
from dcore_jax.calls import Call, CallFormat, calls_equal, parse_response, render_calls
from dcore_jax.engines.engine import Request, Sample, SamplingParams
from dcore_jax.engines.native import NativeEngine
from dcore_jax.toolworld import Task, ToolWorld, generate_tasks


@dataclass(frozen=True)
class Attempt:
    """What a model did with a task."""

    task: Task
    turns: tuple[str, ...]  # the assistant's, as sampled
    calls: tuple[Call, ...]  # of all turns, in order
    error: str | None  # why a turn could not be read, or that the turns ran out

    @property
    def solved(self) -> bool:
        """Exactly the reference calls and nothing unreadable."""
        ordered = self.task.kind == "sequential"
        return self.error is None and calls_equal(self.calls, self.task.reference, ordered=ordered)


@dataclass
class _Conversation:
    task: Task
    world: ToolWorld
    messages: list[dict[str, Any]]
    turns: list[str]
    calls: list[Call]
    error: str | None = None
    open: bool = True


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
    """Lets the model act on every task, all tasks side by side; greedy unless `sampling` says otherwise.

    `generate` is an engine's: requests in, samples out in the same order.
    A conversation ends when a turn makes no call, cannot be read, or is the last that is allowed.
    """
    sampling = sampling or SamplingParams(max_tokens=256, temperature=0.0)
    conversations = []
    for task in tasks:
        world = ToolWorld()
        world.reset(task)
        conversations.append(_Conversation(task, world, [{"role": "user", "content": task.query}], [], []))
    bar = tqdm(total=len(tasks), desc="solving", unit="task", disable=not progress, leave=False)
    for turn in range(max_turns):
        waiting = [conversation for conversation in conversations if conversation.open]
        if not waiting:
            break
        requests = [
            Request(tuple(_prompt(conversation, tokenizer)), sampling, id=i)
            for i, conversation in enumerate(waiting)
        ]
        for conversation, sample in zip(waiting, generate(requests), strict=True):
            ended = sample.finish_reason == "stop"
            ids = sample.ids[:-1] if ended else sample.ids
            _act(conversation, tokenizer.decode(ids), call_format, ended, last=turn == max_turns - 1)
            bar.update(not conversation.open)
    bar.close()
    return [Attempt(c.task, tuple(c.turns), tuple(c.calls), c.error) for c in conversations]


def _prompt(conversation: _Conversation, tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template(
        conversation.messages, tools=list(conversation.task.tools), add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _act(conversation: _Conversation, text: str, call_format: CallFormat, ended: bool, *, last: bool) -> None:
    conversation.turns.append(text)
    response = parse_response(text, call_format)
    if not ended or response.calls is None:
        conversation.error = response.error or "the turn did not end"
    elif response.calls:
        conversation.calls += response.calls
        observed = [conversation.world.call(call) for call in response.calls]
        if last:
            conversation.error = "too many turns"
        else:
            # The model's own words, as training data has them: calls in the content, earlier thoughts left to the template.
            conversation.messages.append(
                {"role": "assistant", "content": render_calls(response.calls, call_format)}
            )
            conversation.messages += [{"role": "tool", "content": seen.content} for seen in observed]
    conversation.open = conversation.error is None and bool(response.calls)


def accuracy_table(attempts: Sequence[Attempt]) -> str:
    """Solved tasks by kind and number of subtasks, as text with one row a group and a total."""
    groups: dict[tuple[str, int], list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault((attempt.task.kind, len(attempt.task.reference)), []).append(attempt)
    lines = [f"{'kind':<12}{'calls':>6}{'tasks':>7}{'solved':>8}"]
    for (kind, calls), group in sorted(groups.items()):
        lines.append(f"{kind:<12}{calls:>6}{len(group):>7}{_share(group):>8.0%}")
    return "\n".join([*lines, f"{'all':<12}{'':>6}{len(attempts):>7}{_share(attempts):>8.0%}"])


def _share(attempts: Sequence[Attempt]) -> float:
    return sum(attempt.solved for attempt in attempts) / max(len(attempts), 1)


def solve_held_out(model: Path, *, tasks: int, subtasks: int = 2, shown: int = 3, seed: int = 0) -> str:
    """Greedy answers to held-out tool-world tasks: a table of what was solved, and a few answers to read."""
    from transformers import AutoTokenizer

    decoder, tokenizer = load_hf(model), AutoTokenizer.from_pretrained(model)
    engine = NativeEngine(decoder, slots=32, max_length=1024, eos_token_ids=(tokenizer.eos_token_id,))
    items = generate_tasks(tasks, seed=seed, split="test", subtasks=(1, subtasks))
    attempts = solve(items, engine.generate, tokenizer, progress=True)
    engine.close()
    lines = [accuracy_table(attempts)]
    for attempt in attempts[:shown]:
        wanted = (
            ", ".join(f"{call.name}({dict(call.arguments)})" for call in attempt.task.reference) or "no call"
        )
        lines += [f"\nasked     {attempt.task.query}", f"wanted    {wanted}"]
        lines += [f"answered  {' '.join(turn.split())}" for turn in attempt.turns]
    return "\n".join(lines)
