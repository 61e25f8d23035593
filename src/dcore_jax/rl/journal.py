"""Writes an RL run down step by step, and stops it at what is not finite."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.atomic import write_text_atomic
from dcore_jax.config import config_to_dict
from dcore_jax.errors import UserError
from dcore_jax.metrics import MetricLog, StepLog
from dcore_jax.progress import Progress, log
from dcore_jax.rewards import RewardMix
from dcore_jax.rl.batch import Scored, row_arrays
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.learner import Learner
from dcore_jax.rl.metrics import (
    TokenEntropy,
    answer_rows,
    evaluation_row,
    rollout_metrics,
    rollout_rows,
    row_metrics,
    token_metrics,
    update_metrics,
)
from dcore_jax.rl.rollouts import StepRollouts
from dcore_jax.training.run_folder import last_checkpoint


class Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now


class Journal:
    """Writes steps down, and stops at what is not finite."""

    def __init__(self, config: RLConfig, learner: Learner, tokenizer: Any, start: int, reward: RewardMix):
        self._reward = reward
        output = Path(config.output)
        self._config, self._learner, self._tokenizer, self._output = config, learner, tokenizer, output
        self._metrics = MetricLog(output, config.trackers, start, config_to_dict(config))
        self._rollouts = StepLog(output / "rollouts.jsonl", start)
        self._evaluations = StepLog(output / "evaluation.jsonl", start)
        self._answers = StepLog(output / "evaluation_answers.jsonl", start)
        self._tokens = TokenEntropy(learner.setup.model_config.vocab_size)
        self.first: float | None = None
        self.last: float | None = None

    def log_rollouts(self, step: int, rollouts: StepRollouts, scored: Scored) -> None:
        """After the rollouts, before the update: a run killed between the two has them on disk."""
        self._rollouts.write(rollout_rows(step, rollouts, scored, self._reward.weights))
        mask = scored.responses.mask
        ids = [i for group in rollouts.groups for rollout in group for i in rollout.sample.ids]
        self._tokens.add(np.array(ids, np.int64), scored.old_entropy[mask])

    def log_step(
        self,
        step: int,
        rollouts: StepRollouts,
        scored: Scored,
        updates: Sequence[Any],
        clock: Clock,
        bar: Progress,
    ) -> None:
        generated = int(scored.responses.mask.sum())
        row = {
            "step": step,
            **rollout_metrics(rollouts),
            **{f"weight/{label}": weight for label, weight in self._reward.weights.items()},
            **token_metrics(scored),
            **row_metrics(scored),
            **update_metrics(updates),
            "learning_rate": float(self._learner.setup.schedule(step * self._config.updates - 1)),
            "generated_tokens": generated,
            "generated_tokens_per_second": generated / max(clock.seconds["rollout"], 1e-9),
            "seconds": sum(clock.seconds.values()),
            **{f"seconds_{name}": seconds for name, seconds in clock.seconds.items()},
        }
        self._metrics.write(row)
        if not all(bool(update.finite) for update in updates):
            path = self._output / f"nonfinite_step_{step}.npz"
            arrays: dict[str, Any] = {"old_logprobs": scored.old_logprobs, **row_arrays(scored)}
            np.savez_compressed(path, **arrays)
            raise UserError(
                f"step {step}: loss {row['loss']:.4g} and gradient norm {row['gradient_norm']:.4g} are not both finite; the "
                f"batch is in {path}, {last_checkpoint(self._output)}"
            )
        reward = float(row["reward"])
        self.first, self.last = reward if self.first is None else self.first, reward
        shown = {
            "reward": f"{reward:.3f}",
            **self._by_reward(row),
            "correct": f"{row['correct']:.0%}",
            "flat": f"{row['zero_variance_groups']:.0%}",
            "entropy": f"{row['entropy']:.3f}",
        }
        bar.set_postfix(shown)
        bar.update()

    def _by_reward(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What each reward of a mix of several contributes, for the progress line."""
        labels = self._reward.weights if len(self._reward.weights) > 1 else ()
        return {
            label: f"{sum(v for k, v in row.items() if k == f'reward_{label}' or k.startswith(f'reward_{label}.')):.3f}"
            for label in labels
        }

    def log_evaluation(self, step: int, answers: Sequence[Any]) -> None:
        row = evaluation_row(step, answers)
        self._evaluations.write([row])
        self._answers.write(answer_rows(step, answers))
        log(
            f"greedy, after step {step}: reward {row['reward']:.3f}, correct {row['correct']:.1%} of {row['prompts']}"
        )

    def write_token_entropy(self, path: Path) -> None:
        """The most and least certain tokens of this start of the run."""
        write_text_atomic(path, json.dumps(self._tokens.extremes(self._tokenizer), indent=1) + "\n")

    def close(self) -> None:
        for file in (self._metrics, self._rollouts, self._evaluations, self._answers):
            file.close()
