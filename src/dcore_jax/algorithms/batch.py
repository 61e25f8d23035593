"""An algorithm's config carried out: from rollouts to a batch, and from a batch to the loss."""

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
    """What the loss needs beside the current policy, row by row: slices along axis 0 are minibatches and microbatches."""

    mask: Bool[Array, "responses tokens"]
    old_logprobs: Float[Array, "responses tokens"]
    advantages: Float[Array, "responses tokens"]
    replaced: Bool[Array, "responses tokens"]  # tokens whose advantage is shaped by entropy (DA-GRPO, RL-ZVP)
    ref_logprobs: Float[Array, "responses tokens"] | None
    token_weights: Float[Array, "responses tokens"] | None  # ResT
    importance_weights: Float[Array, "responses tokens"] | None  # against the engine
    penalised: Bool[Array, "responses tokens"] | None  # KL-Cov


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

    `rewards` come with any overlong penalty already added. `correct` marks the responses with exactly the
    reference's calls (RL-ZVP). Entropies are in nats. `progress` counts training steps (ResT), which may hold
    several updates. `region_entropy` are the mean entropies that `inverse` and `collision` start from, to be
    kept from the first step on; taken from this batch when not given. With `entropy_source="current"` the
    tokens to replace are marked and `policy_batch_loss` fills in the bonus. Raises `UserError` for an input
    that the config needs and lacks.
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
            f"kl_coefficient {config.kl_coefficient} needs ref_logprobs; give them or set it to 0"
        )
    values, replaced = _advantages(config, rewards, groups, inside, old_logprobs, old_entropy, correct)

    token_weights = importance_weights = penalised = None
    if config.needs_regions:
        if regions is None:
            raise UserError("region weights need regions, made by dcore_jax.regions.response_regions")
        token_weights = _region_weights(config, regions, inside, old_entropy, region_entropy, progress)
    if config.importance_cap is not None:
        if engine_logprobs is None:
            raise UserError("importance_cap needs engine_logprobs; give them or set it to none")
        importance_weights = losses.truncated_importance_weights(
            old_logprobs, engine_logprobs, inside, cap=config.importance_cap
        )
    if config.kl_cov_ratio:
        penalised = adv.kl_cov_selection(old_logprobs, values, inside, ratio=config.kl_cov_ratio)
    reference = jnp.asarray(ref_logprobs, jnp.float32) if config.needs_reference else None
    return PolicyBatch(
        inside, old_logprobs, values, replaced, reference, token_weights, importance_weights, penalised
    )


def _advantages(
    config: AlgorithmConfig, rewards, groups, inside, old_logprobs, old_entropy, correct
) -> tuple[Array, Array]:
    """The advantage of every token, and which of them are shaped by entropy."""
    nowhere = jnp.zeros_like(inside)
    if config.advantage == "dr_grpo":
        return adv.dr_grpo(rewards, groups, inside), nowhere
    values = adv.grpo(rewards, groups, inside)
    if config.advantage == "grpo":
        return values, nowhere
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
        return values, replaced
    if config.entropy_source == "current":
        return values, replaced
    entropy = adv.select_entropy(config.entropy_source, old=old_entropy, old_logprobs=old_logprobs)
    bonus = adv.entropy_bonus(entropy, alpha=config.alpha, delta=config.delta, scale=config.scale)
    return jnp.where(replaced, bonus, values), replaced


def _region_weights(config: AlgorithmConfig, regions, inside, old_entropy, region_entropy, progress) -> Array:
    initial: RegionValues | Array = config.region_weights
    ceilings = config.region_ceilings
    if config.region_weighting != "fixed":
        if region_entropy is None:
            region_entropy = adv.region_entropy(old_entropy, regions, inside).mean()
        by_entropy = adv.entropy_region_weights(region_entropy, kind=config.region_weighting)
        # Entropy says nothing about text that is no region: it keeps the weight of the table.
        initial = by_entropy.at[Region.OUTSIDE].set(config.region_weights.outside)
        ceilings = RegionValues(
            *[config.weight_max] * len(Region)
        )  # the table's are below most of these starts
    return adv.rest_weights(
        regions,
        inside,
        initial=initial,
        rates=config.region_rates,
        ceilings=ceilings,
        progress=progress,
        weight_min=config.weight_min,
        weight_max=config.weight_max,
    )


def policy_batch_denominator(
    config: AlgorithmConfig, batch: PolicyBatch, *, max_length: int | None = None
) -> Float[Array, ""]:
    """The denominator of a minibatch's loss: compute it once, pass it to every microbatch's `policy_batch_loss`."""
    return losses.loss_denominator(
        batch.mask, config.aggregation, max_length=max_length, token_weights=batch.token_weights
    )


def policy_batch_loss(
    config: AlgorithmConfig,
    logprobs: Float[Array | np.ndarray, "responses tokens"],
    batch: PolicyBatch,
    *,
    denominator: Scalar,
    entropy: Float[Array | np.ndarray, "responses tokens"] | None = None,
) -> tuple[Float[Array, ""], losses.PolicySums]:
    """The loss of a microbatch as `config` says; summed over the microbatches it is the loss of the minibatch.

    `entropy` (nats, of the current policy) is needed by `entropy_source="current"` only. Differentiable in
    `logprobs`.
    """
    values = batch.advantages
    if config.advantage == "da_grpo" and config.entropy_source == "current":
        current = adv.select_entropy("current", current=entropy)
        bonus = adv.entropy_bonus(current, alpha=config.alpha, delta=config.delta, scale=config.scale)
        values = jnp.where(batch.replaced, bonus, values)
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
