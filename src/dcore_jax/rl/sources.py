"""Where a run's tokenizer and prompts come from, and the report of what was read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcore_jax.data import Rejections
from dcore_jax.errors import UserError
from dcore_jax.rl.config import TOOLWORLD, RLConfig
from dcore_jax.rl.prompts import Prompt, Question, read_questions, render_prompts, toolworld_questions
from dcore_jax.run_folder import fingerprint
from dcore_jax.toolworld import generate_tasks


@dataclass(frozen=True)
class PromptReport:
    """What the prompts are; everything that was left out is counted by reason."""

    prompts: int
    calls_expected: int  # prompts whose reference calls a tool
    by_category: dict[str, int]
    longest: int  # tokens
    rejected: Rejections

    def __str__(self) -> str:
        lines = [
            f"prompts   {self.prompts:>8,}   {self.calls_expected:,} expect a call, the longest has {self.longest:,} tokens",
            "category  " + ", ".join(f"{name} {n:,}" for name, n in self.by_category.items()),
        ]
        return "\n".join(lines + [f"left out: {line}" for line in self.rejected.lines()])

    def to_json(self) -> str:
        fields = {
            "prompts": self.prompts,
            "calls_expected": self.calls_expected,
            "by_category": self.by_category,
            "longest": self.longest,
            "rejected": self.rejected.counts,
        }
        return json.dumps(fields, indent=2) + "\n"


def training_prompts(config: RLConfig, tokenizer: Any) -> tuple[list[Prompt], PromptReport]:
    """The run's prompts in file order.

    Raises:
      UserError: no data named, a file that cannot be read, or nothing left to train on.
    """
    if not config.data:
        raise UserError(
            "no prompts: give --data <files>, or --data toolworld for tasks of the embedded tool world"
        )
    files = [name for name in config.data if name != TOOLWORLD]
    questions, rejected = read_questions(
        files, config.reward.call_format, strict=config.strict, reports=config.reports
    )
    if TOOLWORLD in config.data:
        questions += _toolworld(config, config.toolworld.tasks, "train")
    prompts = render_prompts(questions, tokenizer, max_length=config.rollout.max_prompt, rejections=rejected)
    if not prompts:
        raise UserError(f"no prompt to train on: {'; '.join(rejected.lines()) or 'the files hold no rows'}")
    categories: dict[str, int] = {}
    for prompt in prompts:
        name = prompt.question.category
        categories[name] = categories.get(name, 0) + 1
    return prompts, PromptReport(
        prompts=len(prompts),
        calls_expected=sum(bool(prompt.question.reference) for prompt in prompts),
        by_category=dict(sorted(categories.items())),
        longest=max(len(prompt.ids) for prompt in prompts),
        rejected=rejected,
    )


def prompts_fingerprint(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Of their token ids and references: what a run that goes on must find again."""
    return fingerprint(
        json.dumps([prompt.ids, [(call.name, call.arguments) for call in prompt.question.reference]]).encode()
        for prompt in prompts
    )


def evaluation_prompts(config: RLConfig, tokenizer: Any) -> list[Prompt]:
    """The fixed prompts of the greedy evaluation: the first of the files, or held-out tasks of the tool world."""
    settings, rejected = config.evaluation, Rejections()
    if not settings.prompts:
        return []
    if settings.data:
        questions, rejected = read_questions(settings.data, config.reward.call_format, reports=config.reports)
    else:
        questions = _toolworld(config, settings.prompts, "test")
    prompts = render_prompts(
        questions[: settings.prompts], tokenizer, max_length=config.rollout.max_prompt, rejections=rejected
    )
    if not prompts:
        why = "; ".join(rejected.lines()) or f"{', '.join(settings.data)} (evaluation.data) holds no rows"
        raise UserError(f"no prompt to evaluate on: {why}")
    return prompts


def _toolworld(config: RLConfig, count: int, split: str) -> list[Question]:
    settings = config.toolworld
    tasks = generate_tasks(
        count,
        seed=config.seed,
        split=split,
        kinds=settings.kinds or None,
        subtasks=(settings.fewest_subtasks, settings.most_subtasks),
    )
    return toolworld_questions(tasks, config.reward.call_format, reports=config.reports)
