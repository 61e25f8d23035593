"""The two steps of every algorithm: from a step's rollouts to a batch, and from the batch to the loss."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Num, Shaped

from dcore_jax import advantages as adv
from dcore_jax import losses
from dcore_jax.algorithms.config import AlgorithmConfig
from dcore_jax.errors import UserError
from dcore_jax.losses.aggregation import Scalar
from dcore_jax.regions.region import Region, RegionValues


class PolicyBatch(NamedTuple):
    """What the loss needs besides the current policy, one row per response.

    Slices along axis 0 are minibatches and microbatches.
    """

    mask: Bool[Array, "responses tokens"]
    old_logprobs: Float[Array, "responses tokens"]
    advantages: Float[Array, "responses tokens"]
    replaced: Bool[Array, "responses tokens"]  # tokens whose advantage is shaped by entropy (DA-GRPO, RL-ZVP)
    ref_logprobs: Float[Array, "responses tokens"] | None
    token_weights: Float[Array, "responses tokens"] | None  # ResT
    importance_weights: Float[Array, "responses tokens"] | None  # against the engine
    penalised: Bool[Array, "responses tokens"] | None  # KL-Cov's choice, once an update has made it


def policy_batch(
    config: AlgorithmConfig,
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    old_logprobs: Float[Array | np.ndarray, "responses tokens"],
    *,
    correct: Bool[Array | np.ndarray, "responses"] | None = None,
    old_entropy: Float[Array | np.ndarray, "responses tokens"] | None = None,
    ref_logprobs: Float[Array | np.ndarray, "responses tokens"] | None = None,
    engine_logprobs: Float[Array | np.ndarray, "responses tokens"] | None = None,
    regions: Integer[Array | np.ndarray, "responses tokens"] | None = None,
    region_entropy: Float[Array | np.ndarray, "5"] | None = None,
    progress: Scalar = 0.0,
) -> PolicyBatch:
    """Advantages, weights and selections of a whole step's rollouts, as `config` says.

    The advantages are those of `advantages.grpo`, `dr_grpo`, `da_grpo` or `rl_zvp`. With `entropy_source="current"`
    the entropies exist only at the update: the batch holds GRPO's advantages and marks the tokens to replace, and
    `policy_batch_loss` shapes them as `da_grpo` does.

    Args:
      config: the algorithm.
      rewards: with any overlong penalty already added.
      groups: any integers; groups must be complete.
      mask: which tokens are sampled ones.
      old_logprobs: log-probabilities of the tokens under the policy that sampled, by the trainer.
      correct: the responses with exactly the reference's calls (RL-ZVP).
      old_entropy: entropies of the policy that sampled, in nats.
      ref_logprobs: log-probabilities under the reference model, for the KL term.
      engine_logprobs: log-probabilities by the engine that sampled, for the importance weights.
      regions: the `Region` of every token (ResT).
      region_entropy: mean entropy of each region in nats, from which `inverse` and `collision` start; keep that of
        the first step. None: taken from this batch.
      progress: training steps done, each of which may hold several updates (ResT).

    Raises:
      UserError: an input that the config needs is missing.
    """
    inside = jnp.asarray(mask) != 0
    old_logprobs = jnp.asarray(old_logprobs, jnp.float32)
    if config.needs_old_entropy and old_entropy is None:
        raise UserError("the algorithm needs old_entropy, the entropies of the policy that sampled")
    if config.needs_correct and correct is None:
        raise UserError(
            "rl_zvp needs correct, the responses that are right; give them or choose correct=reward"
        )
    if config.needs_reference and ref_logprobs is None:
        raise UserError(
            f"{'kl_coefficient' if config.kl_coefficient else 'reward_kl_coefficient'} "
            f"{config.kl_coefficient or config.reward_kl_coefficient} needs ref_logprobs; give them or set it to 0"
        )
    if config.reward_kl_coefficient:
        assert ref_logprobs is not None
        rewards = losses.kl_in_reward(
            rewards,
            old_logprobs,
            ref_logprobs,
            inside,
            coefficient=config.reward_kl_coefficient,
            estimator=config.reward_kl_estimator,
        )
    values, replaced = _advantages(config, rewards, groups, inside, old_logprobs, old_entropy, correct)

    token_weights = importance_weights = None
    if config.needs_regions:
        if regions is None:
            raise UserError("region weights need regions, made by dcore_jax.regions.response_regions")
        token_weights = _region_weights(config, regions, inside, old_entropy, region_entropy, progress)
    if config.importance_cap:
        if engine_logprobs is None:
            raise UserError("importance_cap needs engine_logprobs; give them or set it to 0")
        importance_weights = losses.truncated_importance_weights(
            old_logprobs, engine_logprobs, inside, cap=config.importance_cap
        )
    reference = jnp.asarray(ref_logprobs, jnp.float32) if config.kl_coefficient else None
    return PolicyBatch(
        inside, old_logprobs, values, replaced, reference, token_weights, importance_weights, None
    )


def _advantages(
    config: AlgorithmConfig, rewards, groups, inside, old_logprobs, old_entropy, correct
) -> tuple[Array, Array]:
    """The advantage of every token, and which of them are shaped by entropy."""
    if config.advantage == "grpo":
        return adv.grpo(rewards, groups, inside, group_std=config.group_std), jnp.zeros_like(inside)
    if config.advantage == "dr_grpo":
        return adv.dr_grpo(rewards, groups, inside), jnp.zeros_like(inside)
    replaced = adv.entropy_triggered(rewards, groups, inside, zeta=config.zeta, trigger=config.trigger)
    if config.advantage == "rl_zvp":
        values = adv.rl_zvp(
            rewards,
            groups,
            old_entropy,
            inside,
            correct=correct if config.correct == "calls" else None,
            alpha=config.alpha,
            scale=config.scale,
            zeta=config.zeta,
            trigger=config.trigger,
        )
    elif config.entropy_source == "current":
        values = adv.grpo(rewards, groups, inside)
    else:
        values = adv.da_grpo(
            rewards,
            groups,
            adv.select_entropy(config.entropy_source, old=old_entropy, old_logprobs=old_logprobs),
            inside,
            alpha=config.alpha,
            delta=config.delta,
            scale=config.scale,
            zeta=config.zeta,
            trigger=config.trigger,
        )
    return values, replaced


def _region_weights(config: AlgorithmConfig, regions, inside, old_entropy, region_entropy, progress) -> Array:
    initial: RegionValues | Array = config.region_weights
    rates, ceilings = config.region_rates, config.region_ceilings
    if config.ablation == "uniform":
        return inside.astype(jnp.float32)
    if config.region_weighting != "fixed":
        if region_entropy is None:
            region_entropy = adv.region_entropy(old_entropy, regions, inside).mean()
        by_entropy = adv.entropy_region_weights(region_entropy, kind=config.region_weighting)
        # Entropy says nothing about text that is no region: it keeps the weight of the table.
        initial = by_entropy.at[Region.OUTSIDE].set(config.region_weights.outside)
        # The table's ceilings are below most of these starts.
        ceilings = RegionValues(*[config.weight_max] * len(Region))
    if config.ablation == "no_thinking":
        table = initial.table() if isinstance(initial, RegionValues) else initial
        initial = jnp.asarray(table, jnp.float32).at[Region.THINKING].set(0.0)
    if config.ablation == "static":
        rates = RegionValues()
    return adv.rest_weights(
        regions,
        inside,
        initial=initial,
        rates=rates,
        ceilings=ceilings,
        progress=progress,
        weight_min=config.weight_min,
        weight_max=config.weight_max,
    )


def policy_batch_denominator(
    config: AlgorithmConfig, batch: PolicyBatch, *, max_length: int | None = None
) -> Float[Array, ""]:
    """The denominator of a minibatch's loss: compute it once, pass it to every microbatch's `policy_batch_loss`.

    `max_length` is the longest response allowed, in tokens; only `constant_length` needs it.

    Raises:
      UserError: what the aggregation needs is missing.
    """
    return losses.loss_denominator(
        batch.mask, config.aggregation, max_length=max_length, token_weights=batch.token_weights
    )


def choose_penalised(
    config: AlgorithmConfig, logprobs: Float[Array | np.ndarray, "responses tokens"], batch: PolicyBatch
) -> PolicyBatch:
    """The batch of an update with KL-Cov's choice of tokens, where the algorithm makes one.

    Args:
      logprobs: log-probabilities of the tokens of the whole minibatch under the policy before the update.
      batch: the whole minibatch.

    Source:
      2505.22617: the covariance is taken in each update, with the current log-probabilities.
    """
    if not config.kl_cov_ratio:
        return batch
    chosen = adv.kl_cov_selection(logprobs, batch.advantages, batch.mask, ratio=config.kl_cov_ratio)
    return batch._replace(penalised=chosen)


def policy_batch_loss(
    config: AlgorithmConfig,
    logprobs: Float[Array | np.ndarray, "responses tokens"],
    batch: PolicyBatch,
    *,
    denominator: Scalar,
    entropy: Float[Array | np.ndarray, "responses tokens"] | None = None,
) -> tuple[Float[Array, ""], losses.PolicySums]:
    """The loss of a microbatch as `config` says; summed over the microbatches it is the loss of the minibatch.

    Args:
      config: the algorithm.
      logprobs: log-probabilities of the tokens under the current policy; the loss is differentiable in them.
      batch: rows of what `policy_batch` made; they may cut groups apart. Where KL-Cov has not chosen its tokens yet
        (`choose_penalised` of the minibatch) they are the minibatch, and it chooses among them.
      denominator: `policy_batch_denominator` of the whole minibatch.
      entropy: entropies of the current policy in nats; needed by `entropy_source="current"` only.

    Raises:
      UserError: `entropy` is needed and missing.
    """
    values = batch.advantages
    if batch.penalised is None:
        batch = choose_penalised(config, logprobs, batch)
    if config.advantage == "da_grpo" and config.entropy_source == "current":
        current = adv.select_entropy("current", current=entropy)
        values = adv.shape_by_entropy(
            values, batch.replaced, current, alpha=config.alpha, delta=config.delta, scale=config.scale
        )
    return losses.policy_loss(
        logprobs,
        batch.old_logprobs,
        values,
        batch.mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        ratio=config.ratio,
        aggregation=config.aggregation,
        denominator=denominator,
        token_weights=batch.token_weights,
        importance_weights=batch.importance_weights,
        ref_logprobs=batch.ref_logprobs,
        kl_coefficient=config.kl_coefficient,
        kl_estimator=config.kl_estimator,
        penalised=batch.penalised,
        penalty_coefficient=config.kl_cov_coefficient,
    )
