"""One step's rollouts: prompts to groups of scored samples. Token ids come from the engine and are never made again from text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcore_jax.advantages import soft_overlong_penalty, zero_variance_groups
from dcore_jax.algorithms import AlgorithmConfig
from dcore_jax.engines import Engine, Request, Sample, SamplingParams, fan_out
from dcore_jax.rewards import Reward, RewardInput, RewardMix
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.prompts import Prompt, prompt_order


@dataclass(frozen=True)
class Rollout:
    """One sampled response and its score."""

    prompt: Prompt
    sample: Sample
    scored: RewardInput  # what the reward was given
    reward: Reward
    penalty: float  # of DAPO's overlong rule, 0 or below

    @property
    def text(self) -> str:
        """The assistant turn: what the template opened and what was sampled, without the end token."""
        return self.scored.response

    @property
    def correct(self) -> bool:
        """Exactly the reference calls, in any order."""
        return self.scored.correct

    @property
    def score(self) -> float:
        """What the advantage is made of."""
        return self.reward.total + self.penalty


@dataclass(frozen=True)
class StepRollouts:
    """`prompts` groups of `group` rollouts each, and how they came to be."""

    groups: tuple[tuple[Rollout, ...], ...]
    next_draw: int  # of the prompt stream
    rounds: int  # of sampling; above 1 only with dynamic sampling
    flat_dropped: int  # groups without reward variance that were sampled and left out


class Sampler:
    """Draws prompts, asks the engine, and scores."""

    def __init__(
        self,
        config: RLConfig,
        algorithm: AlgorithmConfig,
        prompts: Sequence[Prompt],
        tokenizer: Any,
        total: int,
        reward: RewardMix,
    ):
        self._config, self._algorithm, self._reward = config, algorithm, reward
        self._prompts, self._tokenizer, self._total = prompts, tokenizer, total

    def step(self, engine: Engine, step: int, draw: int) -> StepRollouts:
        """The rollouts of a step (counted from 1), from draw number `draw` of the prompt stream on.

        Seeds derive from (seed, step, draw, sample), so that the same weights give the same rollouts again.
        With dynamic sampling groups without reward variance are left out and as many prompts drawn again; when
        `max_sampling_rounds` did not bring enough, some of them are put back, so that a step's size never changes.
        """
        wanted, dynamic = self._config.prompts, self._algorithm.dynamic_sampling
        kept: list[tuple[Rollout, ...]] = []
        flat: list[tuple[Rollout, ...]] = []
        rounds = 0
        while len(kept) < wanted and (
            rounds == 0 or (dynamic and rounds < self._algorithm.max_sampling_rounds)
        ):
            groups = self._groups(engine, step, range(draw, draw + wanted))
            rounds, draw = rounds + 1, draw + wanted
            for group, flat_group in zip(groups, without_variance(groups), strict=True):
                # A group of one has nothing to be compared with and is kept.
                drop = dynamic and flat_group and len(group) > 1
                (flat if drop else kept).append(group)
        missing = max(0, wanted - len(kept))
        return StepRollouts(tuple(kept[:wanted] + flat[:missing]), draw, rounds, len(flat) - missing)

    def greedy(self, engine: Engine, prompts: Sequence[Prompt]) -> list[Rollout]:
        """The most probable answer to each prompt, scored."""
        sampling = SamplingParams(max_tokens=self._config.rollout.max_response, temperature=0.0)
        samples = engine.generate([Request(p.ids, sampling, i) for i, p in enumerate(prompts)])
        return [self._scored(p, s, 0.0, 0, sampled=False) for p, s in zip(prompts, samples)]

    def _groups(self, engine: Engine, step: int, draws: range) -> list[tuple[Rollout, ...]]:
        settings, size = self._config.rollout, self._config.rollout.group
        chosen = [self._prompts[i] for i in prompt_order(len(self._prompts), self._config.seed, draws)]
        requests = []
        for draw, prompt in zip(draws, chosen):
            words = np.random.SeedSequence([self._config.seed, step, draw]).generate_state(1, np.uint64)
            sampling = SamplingParams(
                max_tokens=settings.max_response,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                seed=int(words[0]) >> 1,
            )
            requests += fan_out(Request(prompt.ids, sampling, draw), size)
        samples = engine.generate(requests)
        penalties = self._penalties(samples)
        scored = [
            self._scored(chosen[i // size], sample, penalty, step - 1)
            for i, (sample, penalty) in enumerate(zip(samples, penalties))
        ]
        return [tuple(scored[i : i + size]) for i in range(0, len(scored), size)]

    def _scored(
        self, prompt: Prompt, sample: Sample, penalty: float, done: int, sampled: bool = True
    ) -> Rollout:
        question = prompt.question
        scored = RewardInput(
            response=prompt.opening + response_text(self._tokenizer, sample),
            reference=question.reference,
            call_format=question.call_format,
            expects_reply=question.expects_reply,
            messages=question.messages,
            tools=question.tools,
            category=question.category,
            origin=question.origin,
            progress=min(1.0, done / self._total),
            step=done,
            tokens=len(sample.ids),
            surprisal=-float(np.mean(sample.logprobs)) if sampled and sample.ids else None,
            truncated=sample.finish_reason == "length",
        )
        return Rollout(prompt, sample, scored, self._reward(scored), penalty)

    def _penalties(self, samples: Sequence[Sample]) -> list[float]:
        share, longest = self._algorithm.overlong_buffer, self._config.rollout.max_response
        if not share:
            return [0.0] * len(samples)
        lengths = np.array([len(sample.ids) for sample in samples], np.int32)
        buffer = max(1, math.floor(share * longest))
        penalty = soft_overlong_penalty(
            lengths, max_length=longest, buffer=buffer, factor=self._algorithm.overlong_factor
        )
        return [float(x) for x in np.asarray(penalty)]


def without_variance(groups: Sequence[Sequence[Rollout]]) -> list[bool]:
    """For each group, whether its scores are all equal, by the rule that the advantages use (`zero_variance_groups`)."""
    scores = np.array([rollout.score for group in groups for rollout in group], np.float32)
    number = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    first = np.cumsum([0, *(len(group) for group in groups[:-1])])
    return [bool(flat) for flat in np.asarray(zero_variance_groups(scores, number))[first]]


def response_text(tokenizer: Any, sample: Sample) -> str:
    """The sampled ids as text, without the token that ended them; other special tokens stay visible to the reward."""
    return tokenizer.decode(
        list(sample.content_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
