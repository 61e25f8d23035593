"""Advantages shaped by entropy where the rewards say nothing: DA-GRPO and RL-ZVP."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, Shaped

from dcore_jax.advantages.group_relative import Scalar, group_statistics, grpo, token_mask
from dcore_jax.errors import UserError, check_choice

Trigger = Literal["zero", "group", "below"]
EntropySource = Literal["old", "current", "surprisal"]
TRIGGERS: tuple[str, ...] = get_args(Trigger)
ENTROPY_SOURCES: tuple[str, ...] = get_args(EntropySource)


def select_entropy(
    source: str,
    *,
    old: Float[Array | np.ndarray, "responses tokens"] | None = None,
    current: Float[Array | np.ndarray, "responses tokens"] | None = None,
    old_logprobs: Float[Array | np.ndarray, "responses tokens"] | None = None,
) -> Float[Array, "responses tokens"]:
    """The H of DA-GRPO by the name of its source, in nats and without gradient.

    Args:
      source: `old`: full-vocabulary entropy of the policy that sampled, as in the released code. `current`: of the
        policy being updated. `surprisal`: -log pi_old(y_t) of the sampled token, as in D-CORE's Theorem A.2.
      old: entropies of the policy that sampled, in nats.
      current: entropies of the policy being updated, in nats.
      old_logprobs: log pi_old(y_t) of the sampled tokens.

    Raises:
      UserError: an unknown source, or the array that the source needs is not given.
    """
    check_choice("entropy source", source, ENTROPY_SOURCES)
    chosen = {"old": old, "current": current, "surprisal": old_logprobs}[source]
    if chosen is None:
        raise UserError(f"entropy source {source!r} was chosen but its array was not given")
    chosen = jax.lax.stop_gradient(jnp.asarray(chosen, jnp.float32))
    return -chosen if source == "surprisal" else chosen


def entropy_bonus(
    entropy: Float[Array | np.ndarray, "*shape"],
    *,
    alpha: Scalar = 0.1,
    delta: Scalar = 0.5,
    scale: Scalar = 1.0,
) -> Float[Array, "*shape"]:
    """`scale * psi(H)` with `psi(H) = min(alpha * H, delta)`, H in nats; detached.

    `scale` 1 is the paper; 2 is what the released code computes, which adds psi twice to one aliased array.

    Source:
      D-CORE, 2602.02160, Eq. 7.
    """
    entropy = jax.lax.stop_gradient(jnp.asarray(entropy, jnp.float32))
    return scale * jnp.minimum(alpha * entropy, delta)


def shape_by_entropy(
    advantages: Float[Array | np.ndarray, "responses tokens"],
    replaced: Bool[Array | np.ndarray, "responses tokens"],
    entropy: Float[Array | np.ndarray, "responses tokens"],
    *,
    alpha: Scalar = 0.1,
    delta: Scalar = 0.5,
    scale: Scalar = 1.0,
) -> Float[Array, "responses tokens"]:
    """DA-GRPO's last step: `entropy_bonus` in place of the advantage of every `replaced` token.

    Works token by token: unlike the statistics of a group it may be applied to rows that cut a group apart, as the
    microbatches of an update do.

    Source:
      D-CORE, 2602.02160, Eq. 6 and 20.
    """
    return jnp.where(replaced, entropy_bonus(entropy, alpha=alpha, delta=delta, scale=scale), advantages)


def entropy_triggered(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    zeta: Scalar = 1e-8,
    trigger: str = "zero",
) -> Bool[Array, "responses tokens"]:
    """Which tokens take an advantage shaped by entropy in place of GRPO's; False outside the mask.

    Args:
      rewards, groups, mask: as in `grpo`.
      zeta: a reward this close to its group's mean is at the mean, besides those that only rounding keeps from it.
      trigger: `zero`: |R_i - mean| <= zeta, decided on the rewards (Eq. 20; the released code tests the advantage for
        `== 0` and so misses rounding residue). `group`: that holds for every response of the group (RL-ZVP).
        `below`: Eq. 6 as printed, A_i < zeta, which also replaces every negative advantage.

    Raises:
      UserError: an unknown trigger.

    Source:
      D-CORE, 2602.02160, Eq. 6 and 20; RL-ZVP, 2509.21880.
    """
    check_choice("trigger", trigger, TRIGGERS)
    if trigger == "below":
        return (grpo(rewards, groups, mask) < zeta) & token_mask(mask)
    statistics = group_statistics(rewards, groups)
    distance = jnp.abs(statistics.deviation) if trigger == "zero" else statistics.spread
    return (distance <= zeta)[:, None] & token_mask(mask)


def da_grpo(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    entropy: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    alpha: Scalar = 0.1,
    delta: Scalar = 0.5,
    scale: Scalar = 1.0,
    zeta: Scalar = 1e-8,
    trigger: str = "zero",
) -> Float[Array, "responses tokens"]:
    """DA-GRPO: GRPO's advantage, and `scale * min(alpha * H_t, delta)` where that is 0.

    Args:
      rewards, groups, mask: as in `grpo`; the result is 0 outside `mask`.
      entropy: H_t in nats, chosen with `select_entropy`; detached.
      alpha: slope of the bonus, per nat.
      delta: ceiling of the bonus before `scale`.
      scale: 1 in the paper, 2 in the released code.
      zeta, trigger: which tokens take the bonus, as in `entropy_triggered`.

    Raises:
      UserError: an unknown trigger.

    Source:
      D-CORE, 2602.02160, Eq. 6-9 and 20.
    """
    replaced = entropy_triggered(rewards, groups, mask, zeta=zeta, trigger=trigger)
    values = grpo(rewards, groups, mask)
    return shape_by_entropy(values, replaced, entropy, alpha=alpha, delta=delta, scale=scale)


def rl_zvp(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    entropy: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    correct: Bool[Array | np.ndarray, "responses"] | None = None,
    alpha: Scalar = 0.1,
    scale: Scalar = 1.0,
    zeta: Scalar = 1e-8,
    trigger: str = "group",
) -> Float[Array, "responses tokens"]:
    """RL-ZVP: GRPO's advantage, and one shaped by entropy in groups whose rewards are all equal.

    There correct responses get `scale * alpha * H_t` and wrong ones `scale * alpha * (H_t - max_t H_t)`, the maximum
    over the tokens of the response.

    Args:
      rewards, groups, mask: as in `grpo`; the result is 0 outside `mask`.
      entropy: H_t in nats; detached.
      correct: which responses are right. None: those with a reward above 0, as in the released code, which is wrong
        for rewards that never fall below 0.
      alpha: slope, per nat.
      scale: 1 in the paper; 2 in the released code, by the same aliasing as DA-GRPO.
      zeta, trigger: which tokens are shaped, as in `entropy_triggered`. The released code shapes every response at its
        group's mean (`zero`).

    Raises:
      UserError: an unknown trigger.

    Source:
      2509.21880.
    """
    right = jnp.asarray(rewards) > 0 if correct is None else jnp.asarray(correct)
    inside = token_mask(mask)
    entropy = jnp.where(inside, jax.lax.stop_gradient(jnp.asarray(entropy, jnp.float32)), -jnp.inf)
    highest = jnp.max(entropy, axis=1, keepdims=True, initial=-jnp.inf)
    entropy = jnp.where(inside, entropy, 0.0)
    # A response without tokens has no maximum.
    wrong = entropy - jnp.where(jnp.isfinite(highest), highest, 0.0)
    shaped = scale * alpha * jnp.where(right[:, None], entropy, wrong)
    replaced = entropy_triggered(rewards, groups, mask, zeta=zeta, trigger=trigger)
    return jnp.where(replaced, shaped, grpo(rewards, groups, mask))
