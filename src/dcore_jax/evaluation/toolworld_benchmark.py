"""`dcore eval toolworld`: a checkpoint at held-out tasks of the tool world, as an Evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dcore_jax.calls import CALL_FORMATS
from dcore_jax.dtypes import DTypeName
from dcore_jax.engines import SamplingParams
from dcore_jax.engines.config import EngineConfig
from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.summary import Evaluation, Item
from dcore_jax.evaluation.toolworld import Attempt, play_tasks, training_history
from dcore_jax.player import Limits, PlayableModel, open_model
from dcore_jax.toolworld import KINDS, Task
from dcore_jax.toolworld.spec import TOOLWORLD, ToolWorldSpec, is_spec, parse_spec

AUTO = "auto"
_TASKS = ToolWorldSpec(240, split="test", kinds=KINDS)  # where --tasks says nothing


@dataclass(frozen=True)
class ToolWorldEvaluation:
    """A checkpoint at held-out tasks of the tool world."""

    model: str = ""
    """Hugging Face folder or hub id, or the folder of an SFT or RL run."""
    tasks: str = TOOLWORLD
    """Which tasks, as `toolworld:240,split=test,kinds=parallel+mixed`; of the split test unless it says so."""
    output: str = "eval/toolworld"
    """Folder for summary.json, items.jsonl and report.html."""
    call_format: str = AUTO
    """Notation of calls: python, tags, qwen or json; auto: the one in which the model's chat template asks for them."""
    history: Literal["rendered", "appended"] = "rendered"
    """rendered: as in training records, without thoughts; appended: the very ids that were sampled."""
    trials: int = 1
    """Attempts at each task; several need a temperature."""
    temperature: float = 0.0
    """Of sampling; 0: the most probable token."""
    top_p: float = 1.0
    """Smallest set of tokens with this mass; 1: all."""
    max_tokens: int = 256
    """Most tokens of one turn."""
    max_length: int = 1024
    """Most tokens of a conversation; no more than the model's max_position_embeddings."""
    max_turns: int = 8
    """Turns of the model at one task."""
    seed: int = 0
    """Of sampling; that of the tasks stands in --tasks."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables of the chat template as key=value, such as enable_thinking=false."""
    dtype: DTypeName = "float32"
    """Type of the model's computation."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What samples."""

    def __post_init__(self) -> None:
        if self.call_format != AUTO:
            check_choice("call format", self.call_format, CALL_FORMATS)
        if self.trials < 1:
            raise UserError(f"trials={self.trials} must be at least 1")
        if self.trials > 1 and self.temperature == 0:
            raise UserError(
                f"trials={self.trials} at temperature 0 are all the same; give --temperature 0.7, or 1 trial"
            )
        self.sampling()
        self.limits()
        parse_tasks(self.tasks)

    def sampling(self) -> SamplingParams:
        """How turns are sampled."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )

    def limits(self) -> Limits:
        """How far a conversation may go."""
        return Limits(
            max_length=self.max_length,
            max_tokens=self.max_tokens,
            max_turns=self.max_turns,
            at_once=max(64, 2 * self.engine.slots),
        )


def parse_tasks(text: str) -> ToolWorldSpec:
    """The tasks of `--tasks`: a specification with or without `toolworld:`, of the split test unless it names one."""
    return parse_spec(text if is_spec(text) else f"{TOOLWORLD}:{text}", defaults=_TASKS)


def evaluate(config: ToolWorldEvaluation) -> Evaluation:
    """Opens the model, plays the tasks with a progress bar, closes the model.

    Raises:
      UserError: no model, or one that the engine cannot work with.
    """
    tasks = parse_tasks(config.tasks).tasks()
    opened = open_model(
        config.model,
        config.engine,
        max_length=config.max_length,
        chat_template_kwargs=config.chat_template_kwargs,
        dtype=config.dtype,
        output=config.output,
    )
    try:
        attempts = attempt(opened, tasks * config.trials, config)
    finally:
        opened.engine.close()
    return evaluation_of(attempts, len(tasks), config, opened)


def attempt(
    model: PlayableModel, tasks: Sequence[Task], config: ToolWorldEvaluation, *, progress: bool = True
) -> list[Attempt]:
    """The model's attempts at the tasks."""
    call_format = (model.notation or "python") if config.call_format == AUTO else config.call_format
    history = (
        model.bridge(call_format)
        if config.history == "appended"
        else training_history(model.template, call_format)
    )
    return play_tasks(
        tasks, model.engine, history, config.limits(), sampling=config.sampling(), progress=progress
    )


def evaluation_of(
    attempts: Sequence[Attempt], tasks: int, config: ToolWorldEvaluation, model: PlayableModel
) -> Evaluation:
    """The attempts as items: categories are the kinds of tasks, in the order of `KINDS`."""
    items = [
        Item(a.task.id, a.task.kind, float(a.solved), number // tasks, "" if a.solved else _reason(a))
        for number, a in enumerate(attempts)
    ]
    items.sort(key=lambda item: (item.trial, KINDS.index(item.category)))
    share = sum(a.solved_by_state for a in attempts) / max(len(attempts), 1)
    several = [a for a in attempts if len(a.task.reference) > 1]
    settings = {
        "tasks": config.tasks,
        "history": config.history,
        "engine": config.engine.name,
        "temperature": config.temperature,
        "max_length": model.max_length,
        "max_turns": config.max_turns,
        "trials": config.trials,
    }
    metrics = {"by_state": share}
    if several:
        metrics["several_calls"] = sum(a.solved for a in several) / len(several)
    return Evaluation(TOOLWORLD, config.model, tuple(items), settings=settings, metrics=metrics)


def _reason(attempt: Attempt) -> str:
    if attempt.error is not None:
        return attempt.error
    made, wanted = len(attempt.calls), len(attempt.task.reference)
    return f"{made} calls, {wanted} wanted" if made != wanted else "other calls than the reference's"
