"""Advantages that fall back on entropy where the rewards say nothing: DA-GRPO and RL-ZVP."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, Shaped

from dcore_jax.advantages.group_relative import Scalar, group_statistics, grpo, token_mask
from dcore_jax.errors import UserError

TRIGGERS = ("zero", "group", "below")
ENTROPY_SOURCES = ("old", "current", "surprisal")


def select_entropy(
    source: str,
    *,
    old: Float[Array | np.ndarray, "responses tokens"] | None = None,
    current: Float[Array | np.ndarray, "responses tokens"] | None = None,
    old_logprobs: Float[Array | np.ndarray, "responses tokens"] | None = None,
) -> Float[Array, "responses tokens"]:
    """The H of DA-GRPO by name, in nats and without gradient.

    `old`: full-vocabulary entropy of the policy that sampled, as the released code does; `current`: of the
    policy being updated; `surprisal`: -log pi_old(y_t) of the sampled token, as in D-CORE's Theorem A.2.
    Raises `UserError` for another name or when the array that the name needs is not given.
    """
    arrays = {"old": old, "current": current, "surprisal": old_logprobs}
    if source not in arrays:
        raise UserError(f"entropy source {source!r} is unknown; choose one of {', '.join(ENTROPY_SOURCES)}")
    chosen = arrays[source]
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
    """`scale * psi(H)` with `psi(H) = min(alpha * H, delta)` (D-CORE Eq. 7), detached.

    `scale` 1 is the paper; 2 is what the released code computes, which adds psi twice to one aliased array.
    """
    entropy = jax.lax.stop_gradient(jnp.asarray(entropy, jnp.float32))
    return scale * jnp.minimum(alpha * entropy, delta)


def entropy_triggered(
    rewards: Num[Array | np.ndarray, "responses"],
    groups: Num[Array | np.ndarray, "responses"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    zeta: Scalar = 1e-8,
    trigger: str = "zero",
) -> Bool[Array, "responses tokens"]:
    """Which tokens take an entropy-shaped advantage in place of GRPO's; False outside the mask.

    `zero`: |R_i - mean| <= zeta, decided from the rewards (Eq. 20 and the released code, without its misses
    on rounding residue). `group`: that holds for every response of the group (RL-ZVP). `below`: Eq. 6 as
    printed, A_i < zeta, which also replaces every negative advantage. Raises `UserError` for another name.
    """
    if trigger in ("zero", "group"):
        statistics = group_statistics(rewards, groups)
        distance = jnp.abs(statistics.deviation) if trigger == "zero" else statistics.spread
        return (distance <= zeta)[:, None] & token_mask(mask)
    if trigger == "below":
        return (grpo(rewards, groups, mask) < zeta) & token_mask(mask)
    raise UserError(f"trigger {trigger!r} is unknown; choose one of {', '.join(TRIGGERS)}")


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
    """DA-GRPO (D-CORE Eq. 6-9, 20): GRPO's advantage, or `scale * min(alpha * H_t, delta)` where that is 0.

    `entropy` is in nats, chosen with `select_entropy`; it is detached. The result is 0 outside `mask`. Raises
    `UserError` for an unknown trigger.
    """
    replaced = entropy_triggered(rewards, groups, mask, zeta=zeta, trigger=trigger)
    bonus = entropy_bonus(entropy, alpha=alpha, delta=delta, scale=scale)
    return jnp.where(replaced, bonus, grpo(rewards, groups, mask))


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
    """RL-ZVP (2509.21880): GRPO, and in groups whose rewards are all equal an advantage shaped by entropy.

    `correct` says which responses are right; without it those with a reward above 0, as in the released code,
    which is wrong for rewards that never fall below 0. Correct responses get `+alpha * H_t`, wrong ones
    `alpha * (H_t - max over the response of H)`, times `scale` (2 in the released code, by the same aliasing
    as DA-GRPO). `trigger="zero"` does this for every response at its group's mean, as the released code does.
    The entropy is detached; the result is 0 outside `mask`. Raises `UserError` for an unknown trigger.
    """
    right = jnp.asarray(rewards) > 0 if correct is None else jnp.asarray(correct)
    inside = token_mask(mask)
    entropy = jnp.where(inside, jax.lax.stop_gradient(jnp.asarray(entropy, jnp.float32)), -jnp.inf)
    highest = jnp.max(entropy, axis=1, keepdims=True, initial=-jnp.inf)
    entropy = jnp.where(inside, entropy, 0.0)
    wrong = entropy - jnp.where(jnp.isfinite(highest), highest, 0.0)
    shaped = scale * alpha * jnp.where(right[:, None], entropy, wrong)
    replaced = entropy_triggered(rewards, groups, mask, zeta=zeta, trigger=trigger)
    return jnp.where(replaced, shaped, grpo(rewards, groups, mask))
