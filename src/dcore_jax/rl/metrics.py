"""What a step says of itself: the row of metrics.jsonl, the rows of rollouts.jsonl, entropies by token."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dcore_jax.advantages import region_entropy
from dcore_jax.calls import render_calls
from dcore_jax.data.record import Message
from dcore_jax.errors import UserError
from dcore_jax.losses import PolicySums, add_policy_sums, engine_gap, policy_metrics
from dcore_jax.regions import Region
from dcore_jax.rewards import count_reflections
from dcore_jax.rl.batch import Scored
from dcore_jax.rl.prompts import Question
from dcore_jax.rl.rollouts import Rollout, StepRollouts, without_variance
from dcore_jax.rl.rows import RowCounts, count_rows
from dcore_jax.rl.step import UpdateMetrics


def rollout_metrics(rollouts: StepRollouts) -> dict[str, Any]:
    """Rewards, lengths, thoughts and groups of a step, before anything was trained on it."""
    every = [rollout for group in rollouts.groups for rollout in group]
    thoughts = [r.scored.thought for r in every if r.scored.thought is not None]
    spread = [
        float(np.std([r.score for r in group], ddof=min(1, len(group) - 1))) for group in rollouts.groups
    ]
    return {
        "reward": _mean(r.reward.total for r in every),
        **_by_part(every),
        **({"overlong_penalty": _mean(r.penalty for r in every)} if any(r.penalty for r in every) else {}),
        "correct": _mean(r.correct for r in every),
        **_by_category("reward", every, lambda r: r.reward.total),
        "zero_variance_groups": _mean(without_variance(rollouts.groups)),
        "group_reward_std": [round(s, 6) for s in spread],
        "sampling_rounds": rollouts.rounds,
        "flat_groups_dropped": rollouts.flat_dropped,
        "unreadable_calls": _mean(r.scored.calls is None for r in every),
        "reflections_per_thought": _mean(count_reflections(t) for t in thoughts) if thoughts else 0.0,
        "thoughts": len(thoughts),
        "response_length": _mean(len(r.sample.ids) for r in every),
        "response_length_max": max(len(r.sample.ids) for r in every),
        "truncated": _mean(r.sample.finish_reason == "length" for r in every),
        "weight_version": min(r.sample.weight_version for r in every),
    }


def token_metrics(scored: Scored) -> dict[str, Any]:
    """Advantages, entropies by region, and how far the engine's log-probabilities are from the trainer's."""
    inside, policy = scored.responses.mask, scored.policy
    used = np.asarray(policy.mask)
    advantages = np.asarray(policy.advantages)[used]
    replaced = np.asarray(policy.replaced)[used]
    regions = region_entropy(scored.old_entropy, scored.regions, inside)
    means, counts = np.asarray(regions.mean()), np.asarray(regions.tokens)
    gap = engine_gap(scored.old_logprobs, scored.responses.engine_logprobs, inside)
    return {
        "advantage_mean": _mean(advantages),
        "advantage_std": float(np.std(advantages)) if advantages.size else 0.0,
        "advantage_replaced": _mean(replaced),
        "entropy": _mean(scored.old_entropy[inside]),
        **{f"entropy_{r.name.lower()}": float(means[r]) for r in Region if counts[r]},
        **({} if scored.reward_kl is None else {"kl_in_reward": _mean(scored.reward_kl)}),
        "engine_gap_mean": float(gap.mean_abs),
        "engine_gap_max": float(gap.largest),
        "engine_gap_ess": float(gap.ess),
        "engine_gap_truncated": float(gap.truncated),
    }


def row_metrics(scored: Scored) -> dict[str, Any]:
    """How full the trainer's packed rows are, and how many positions its passes take."""
    responses, tokens = scored.responses.mask.shape
    per_update = responses // max(len(scored.passes), 1)
    counts = [count_rows(passes, per_update, tokens) for passes in scored.passes]
    total = RowCounts(*map(sum, zip(*counts)))
    return {
        "row_fill": total.tokens / max(total.positions, 1),
        "slot_fill": total.responses / max(total.slots, 1),
        "row_positions": total.positions,
        "passes": sum(map(len, scored.passes)),
    }


def update_metrics(updates: Sequence[UpdateMetrics]) -> dict[str, Any]:
    """Means over a step's updates; clip fractions, ratios and KL over all of their tokens."""
    sums: PolicySums = updates[0].sums
    for update in updates[1:]:
        sums = add_policy_sums(sums, update.sums)
    norms = [float(update.gradient_norm) for update in updates]
    return {
        "loss": _mean(float(update.loss) for update in updates),
        "gradient_norm": _mean(norms),
        "gradient_norm_max": max(norms),
        **{name: float(value) for name, value in policy_metrics(sums)._asdict().items()},
    }


def rollout_rows(
    step: int, rollouts: StepRollouts, scored: Scored, weights: Mapping[str, float]
) -> Iterable[dict[str, Any]]:
    """One row for each response, for rollouts.jsonl; `weights` are those of the rewards, which the parts contain."""
    policy = scored.policy
    advantages, replaced, mask = (np.asarray(x) for x in (policy.advantages, policy.replaced, policy.mask))
    row = 0
    for number, group in enumerate(rollouts.groups):
        for rollout in group:
            values = advantages[row][mask[row]]
            yield {
                "step": step,
                "group": number,
                "origin": rollout.prompt.question.origin,
                "category": rollout.prompt.question.category,
                "query": asked(rollout.prompt.question.messages),
                "prompt": rollout.prompt.text,
                "response": rollout.text,
                "reward": rollout.reward.total,
                "reward_parts": dict(rollout.reward.parts),
                "reward_weights": dict(weights),
                "overlong_penalty": rollout.penalty,
                "correct": rollout.correct,
                "unreadable": rollout.reward.error,
                "advantage_mean": _mean(values),
                "advantage_min": float(values.min()) if values.size else 0.0,
                "advantage_max": float(values.max()) if values.size else 0.0,
                "advantage_replaced": _mean(replaced[row][mask[row]]),
                "tokens": len(rollout.sample.ids),
                "finish_reason": rollout.sample.finish_reason,
                "weight_version": rollout.sample.weight_version,
            }
            row += 1


def evaluation_row(step: int, answers: Sequence[Rollout]) -> dict[str, Any]:
    """Greedy answers to the fixed prompts: mean reward, in all, by part and by category; share that is exactly right."""
    return {
        "step": step,
        "prompts": len(answers),
        "reward": _mean(r.reward.total for r in answers),
        **_by_part(answers),
        "correct": _mean(r.correct for r in answers),
        **_by_category("reward", answers, lambda r: r.reward.total),
        **_by_category("correct", answers, lambda r: float(r.correct)),
    }


def answer_rows(step: int, answers: Sequence[Rollout]) -> Iterable[dict[str, Any]]:
    """One row for each greedy answer to a fixed prompt, for evaluation_answers.jsonl."""
    for rollout in answers:
        question = rollout.prompt.question
        yield {
            "step": step,
            "origin": question.origin,
            "category": question.category,
            "query": asked(question.messages),
            "reference": _written(question),
            "response": rollout.text,
            "reward": rollout.reward.total,
            "correct": rollout.correct,
        }


def asked(messages: Sequence[Message]) -> str:
    """What a prompt asks: its last message of a user, and what came after it with the name of its role."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    texts = [
        (message["role"], str(message.get("content") or message.get("tool_calls") or ""))
        for message in messages[last:]
    ]
    return "\n".join([texts[0][1], *(f"{role}: {text}" for role, text in texts[1:])]) if texts else ""


def _written(question: Question) -> str:
    """The reference calls in the question's notation; as JSON where it cannot write them."""
    try:
        return render_calls(question.reference, question.call_format) if question.reference else ""
    except UserError:
        return json.dumps(
            [{"name": call.name, "arguments": dict(call.arguments)} for call in question.reference]
        )


class TokenEntropy:
    """Mean entropy at which each token of the vocabulary was sampled, over this start of the run."""

    def __init__(self, vocabulary: int):
        self._total, self._count = np.zeros(vocabulary), np.zeros(vocabulary, np.int64)

    def add(self, ids: Int[np.ndarray, "tokens"], entropy: Float[np.ndarray, "tokens"]) -> None:
        self._total += np.bincount(ids, entropy, minlength=len(self._total))
        self._count += np.bincount(ids, minlength=len(self._count))

    def extremes(self, tokenizer: Any, *, count: int = 25, seen: int = 10) -> dict[str, list[dict[str, Any]]]:
        """The `count` tokens of highest and of lowest mean entropy among those sampled at least `seen` times."""
        often = np.flatnonzero(self._count >= min(seen, max(int(self._count.max()), 1)))
        mean = self._total[often] / self._count[often]
        order = often[np.argsort(mean, kind="stable")]

        def rows(ids: Any) -> list[dict[str, Any]]:
            return [
                {
                    "token": tokenizer.decode([int(i)]),
                    "id": int(i),
                    "entropy": float(self._total[i] / self._count[i]),
                    "count": int(self._count[i]),
                }
                for i in ids
            ]

        return {"highest": rows(order[::-1][:count]), "lowest": rows(order[:count])}


def _by_part(rollouts: Sequence[Rollout]) -> dict[str, float]:
    parts = sorted({name for rollout in rollouts for name in rollout.reward.parts})
    return {f"reward_{name}": _mean(r.reward.parts.get(name, 0.0) for r in rollouts) for name in parts}


def _by_category(name: str, rollouts: Sequence[Rollout], value: Any) -> dict[str, float]:
    categories = sorted({r.prompt.question.category for r in rollouts})
    if len(categories) < 2:
        return {}
    return {
        f"{name}/{category}": _mean(value(r) for r in rollouts if r.prompt.question.category == category)
        for category in categories
    }


def _mean(values: Iterable[Any]) -> float:
    found = np.fromiter((float(v) for v in values), np.float64)
    return float(found.mean()) if found.size else 0.0
