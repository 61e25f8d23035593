"""One step's rollouts: prompts to groups of scored samples. Token ids come from the engine and are never made again from text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcore_jax.advantages import soft_overlong_penalty, zero_variance_groups
from dcore_jax.algorithms import AlgorithmConfig
from dcore_jax.calls import calls_equal, parse_response
from dcore_jax.engines import Engine, Request, Sample, SamplingParams, fan_out
from dcore_jax.rewards import Reward, tool_reward
from dcore_jax.rewards.rest import RELEASE_STEPS
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.prompts import Prompt, prompt_order


@dataclass(frozen=True)
class Rollout:
    """One sampled response and its score."""

    prompt: Prompt
    sample: Sample
    text: str  # the assistant turn: what the template opened and what was sampled, without the end token
    reward: Reward
    penalty: float  # of DAPO's overlong rule, 0 or below
    correct: bool  # exactly the reference calls, in any order

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
    ):
        self._config, self._algorithm = config, algorithm
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
        return [self._scored(p, s, 0.0, 0.0) for p, s in zip(prompts, samples)]

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
        progress = self._progress(step)
        scored = [
            self._scored(chosen[i // size], sample, penalty, progress)
            for i, (sample, penalty) in enumerate(zip(samples, penalties))
        ]
        return [tuple(scored[i : i + size]) for i in range(0, len(scored), size)]

    def _scored(self, prompt: Prompt, sample: Sample, penalty: float, progress: float) -> Rollout:
        config, question = self._config.reward, prompt.question
        text = prompt.opening + response_text(self._tokenizer, sample)
        reward = tool_reward(
            text,
            question.reference,
            preset=self._config.reward_preset,
            call_format=config.call_format,
            progress=progress,
            expects_reply=question.expects_reply,
            beta_accuracy=config.beta_accuracy,
            beta_format=config.beta_format,
        )
        calls = parse_response(text, config.call_format).calls
        correct = calls is not None and calls_equal(calls, question.reference, ordered=False)
        return Rollout(prompt, sample, text, reward, penalty, correct)

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

    def _progress(self, step: int) -> float:
        """nu of ResT's rewards at a step counted from 1."""
        whole = RELEASE_STEPS if self._config.reward_preset == "rest_release" else self._total
        return min(1.0, (step - 1) / whole)


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
