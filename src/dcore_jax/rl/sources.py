"""Where a run's tokenizer and prompts come from, and the report of what was read."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from dcore_jax.calls import CallFormat
from dcore_jax.data import Rejections
from dcore_jax.data.contamination import read_benchmarks
from dcore_jax.data.notation import template_notation
from dcore_jax.data.sources import SourceCount
from dcore_jax.errors import UserError
from dcore_jax.rewards import RewardMix
from dcore_jax.rl.config import AUTO, RLConfig
from dcore_jax.rl.playback import reachable_prompts
from dcore_jax.rl.prompts import (
    Prompt,
    Question,
    questions_in,
    read_questions,
    render_prompts,
    toolworld_questions,
)
from dcore_jax.toolworld.spec import TOOLWORLD, ToolWorldSpec, is_spec, parse_spec
from dcore_jax.training.run_folder import data_fingerprint


@dataclass(frozen=True)
class PromptReport:
    """What the prompts are; everything that was left out is counted by reason."""

    prompts: int
    calls_expected: int  # prompts whose reference calls a tool
    by_notation: dict[str, int]  # in which their responses are scored
    by_category: dict[str, int]
    longest: int  # tokens
    rejected: Rejections
    sources: tuple[SourceCount, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"prompts   {self.prompts:>8,}   {self.calls_expected:,} expect a call, the longest has {self.longest:,} tokens",
            "notation  " + ", ".join(f"{name} {n:,}" for name, n in self.by_notation.items()),
            "category  " + ", ".join(f"{name} {n:,}" for name, n in self.by_category.items()),
        ]
        if len(self.sources) > 1:
            lines += [f"source    {source}" for source in self.sources]
        return "\n".join(lines + [f"left out: {line}" for line in self.rejected.lines()])

    def to_json(self) -> str:
        fields = {
            "prompts": self.prompts,
            "calls_expected": self.calls_expected,
            "by_notation": self.by_notation,
            "by_category": self.by_category,
            "longest": self.longest,
            "rejected": self.rejected.counts,
            "sources": [asdict(source) for source in self.sources],
        }
        return json.dumps(fields, indent=2) + "\n"


def run_notation(config: RLConfig, tokenizer: Any) -> CallFormat:
    """The notation of prompts that bring none of their own: the one given, or the one that the chat template asks for.

    Where the template shows no tools and the row says nothing, it is D-CORE's list of Python calls.
    """
    if config.reward.call_format != AUTO:
        return config.reward.call_format
    return template_notation(tokenizer) or "python"


def training_prompts(
    config: RLConfig, tokenizer: Any, reward: RewardMix
) -> tuple[list[Prompt], PromptReport]:
    """The run's prompts in file order, of which every reference reaches the top of the reward.

    Args:
      tokenizer: with a chat template, or a `ChatTemplate`.

    Raises:
      UserError: no data named, a file that cannot be read, or nothing left to train on.
    """
    if not config.data:
        raise UserError(
            "no prompts: give --data <files>, or --data toolworld for tasks of the embedded tool world"
        )
    notation = run_notation(config, tokenizer)
    files = [name for name in config.data if not is_spec(name)]
    counts: dict[str, SourceCount] = {}
    questions, rejected = read_questions(
        files, notation, strict=config.strict, reports=config.reports, seed=config.seed, counts=counts
    )
    for name in filter(is_spec, config.data):
        spec = toolworld_spec(name, config.seed)
        drawn = _toolworld(config, notation, spec)
        count = counts.setdefault(name, SourceCount(name, 1.0))
        count.rows, count.taken = count.rows + spec.count, count.taken + spec.count
        questions += [replace(question, source=name) for question in drawn]
    questions = _uncontaminated(config, _in_one_notation(config, questions), rejected)
    prompts = render_prompts(questions, tokenizer, max_length=config.rollout.max_prompt, rejections=rejected)
    prompts = reachable_prompts(prompts, tokenizer, reward, rejected)
    if not prompts:
        raise UserError(f"no prompt to train on: {'; '.join(rejected.lines()) or 'the files hold no rows'}")
    for prompt in prompts:
        counts[prompt.question.source].kept += 1
    categories: dict[str, int] = {}
    for prompt in prompts:
        name = prompt.question.category
        categories[name] = categories.get(name, 0) + 1
    return prompts, PromptReport(
        prompts=len(prompts),
        calls_expected=sum(bool(prompt.question.reference) for prompt in prompts),
        by_notation=dict(sorted(Counter(prompt.question.call_format for prompt in prompts).items())),
        by_category=dict(sorted(categories.items())),
        longest=max(len(prompt.ids) for prompt in prompts),
        rejected=rejected,
        sources=tuple(counts.values()),
    )


def prompts_fingerprint(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Of their token ids and references: what a run that goes on must find again."""
    return data_fingerprint(
        json.dumps([prompt.ids, [(call.name, call.arguments) for call in prompt.question.reference]]).encode()
        for prompt in prompts
    )


def evaluation_prompts(config: RLConfig, tokenizer: Any) -> list[Prompt]:
    """The fixed prompts of the greedy evaluation: the first of the files, or held-out tasks of the tool world."""
    settings, rejected = config.evaluation, Rejections()
    if not settings.prompts:
        return []
    notation = run_notation(config, tokenizer)
    if settings.data:
        # No more is read than is asked for: a large hub dataset is not fetched whole.
        files = [name for name in settings.data if not is_spec(name)]
        found = questions_in(files, notation, rejected, reports=config.reports, seed=config.seed)
        questions = list(islice(found, settings.prompts))
        for name in filter(is_spec, settings.data):
            questions += _toolworld(config, notation, toolworld_spec(name, config.seed, "test"))
        questions = _in_one_notation(config, questions)
    else:
        # As the training tasks are, if there are any, but from the split that no training data may be drawn from.
        name = next(filter(is_spec, config.data), TOOLWORLD)
        spec = replace(toolworld_spec(name, config.seed), count=settings.prompts, split="test")
        questions = _toolworld(config, notation, spec)
    prompts = render_prompts(
        questions[: settings.prompts], tokenizer, max_length=config.rollout.max_prompt, rejections=rejected
    )
    if not prompts:
        why = "; ".join(rejected.lines()) or f"{', '.join(settings.data)} (evaluation.data) holds no rows"
        raise UserError(f"no prompt to evaluate on: {why}")
    return prompts


def toolworld_spec(name: str, seed: int, split: str = "train") -> ToolWorldSpec:
    """The tasks of a data name such as `toolworld:512,kinds=single`; plain `toolworld` is 512 tasks of up to two calls."""
    return parse_spec(name, defaults=ToolWorldSpec(count=512, subtasks=(1, 2), seed=seed, split=split))


def _toolworld(config: RLConfig, notation: CallFormat, spec: ToolWorldSpec) -> list[Question]:
    return toolworld_questions(spec.tasks(), notation, reports=config.reports)


def _uncontaminated(config: RLConfig, questions: list[Question], rejected: Rejections) -> list[Question]:
    """The questions that no item of `config.benchmarks` matches; the others are counted."""
    if not config.benchmarks:
        return questions
    guard, kept = read_benchmarks(config.benchmarks), []
    for question in questions:
        if reason := guard.reason_of_messages(question.messages, question.tools):
            rejected.add(reason, question.origin)
        else:
            kept.append(question)
    return kept


def _in_one_notation(config: RLConfig, questions: list[Question]) -> list[Question]:
    """The questions; where a notation is given by name, all of them in that one."""
    if config.reward.call_format == AUTO:
        return questions
    return [replace(question, call_format=config.reward.call_format) for question in questions]
