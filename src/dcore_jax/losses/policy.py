"""The clipped policy objective with its variants (dual clip, GSPO, KL-Cov), and its training metrics."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from dcore_jax.errors import UserError, check_choice
from dcore_jax.losses.aggregation import Scalar, aggregate, loss_denominator
from dcore_jax.losses.kl import kl_estimate

Ratio = Literal["token", "sequence"]
RATIOS: tuple[str, ...] = get_args(Ratio)


class PolicySums(NamedTuple):
    """Sums over masked tokens, and extremes; `add_policy_sums` joins those of microbatches exactly."""

    tokens: Float[Array, ""]
    clipped_low: Float[Array, ""]  # tokens with A < 0 held at 1 - clip_low
    clipped_high: Float[Array, ""]  # tokens with A > 0 held at 1 + clip_high
    dual_clipped: Float[Array, ""]  # tokens with A < 0 held at dual_clip
    penalised: Float[Array, ""]  # tokens with KL-Cov's penalty
    old_kl: Float[Array, ""]  # k1 estimate of KL(old || current)
    ref_kl: Float[Array, ""]  # the KL term of the loss, before its coefficient
    ratio: Float[Array, ""]
    ratio_squared: Float[Array, ""]
    ratio_min: Float[Array, ""]
    ratio_max: Float[Array, ""]


class PolicyMetrics(NamedTuple):
    """Means over the tokens of the global batch."""

    clip_fraction_low: Float[Array, ""]
    clip_fraction_high: Float[Array, ""]
    dual_clip_fraction: Float[Array, ""]
    penalised_fraction: Float[Array, ""]
    old_kl: Float[Array, ""]  # nats
    ref_kl: Float[Array, ""]  # nats
    ratio_mean: Float[Array, ""]
    ratio_min: Float[Array, ""]
    ratio_max: Float[Array, ""]
    # (sum ratio)^2 / sum ratio^2 / tokens: 1 on-policy, towards 0 when a few tokens dominate
    ess: Float[Array, ""]


def add_policy_sums(first: PolicySums, second: PolicySums) -> PolicySums:
    """The sums of two microbatches as if they had been one."""
    joined = jax.tree.map(jnp.add, first, second)
    return joined._replace(
        ratio_min=jnp.minimum(first.ratio_min, second.ratio_min),
        ratio_max=jnp.maximum(first.ratio_max, second.ratio_max),
    )


def policy_metrics(sums: PolicySums) -> PolicyMetrics:
    """Fractions and means from the sums of a global batch."""
    tokens = jnp.maximum(sums.tokens, 1)
    return PolicyMetrics(
        clip_fraction_low=sums.clipped_low / tokens,
        clip_fraction_high=sums.clipped_high / tokens,
        dual_clip_fraction=sums.dual_clipped / tokens,
        penalised_fraction=sums.penalised / tokens,
        old_kl=sums.old_kl / tokens,
        ref_kl=sums.ref_kl / tokens,
        ratio_mean=sums.ratio / tokens,
        ratio_min=sums.ratio_min,
        ratio_max=sums.ratio_max,
        ess=sums.ratio**2 / jnp.maximum(sums.ratio_squared, 1e-30) / tokens,
    )


def policy_ratio(
    logprobs: Float[Array, "responses tokens"],
    old_logprobs: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    kind: str = "token",
) -> Float[Array, "responses tokens"]:
    """Importance ratio of the current to the sampling policy, 1 outside `mask`.

    Args:
      logprobs: log pi of the sampled tokens; differentiable in them.
      old_logprobs: log pi_old of the same tokens.
      mask: which tokens are sampled ones.
      kind: `token`: pi / pi_old of the token, its logarithm limited to [-20, 20]. `sequence`: GSPO's
        s_i = (prod pi / pi_old)^(1/|y_i|) in value, with the gradient of the single token, sg[s_i] * pi / sg[pi];
        its logarithm at most 10.

    Raises:
      UserError: an unknown kind.

    Source:
      GSPO, 2507.18071, Eq. 13-14.
    """
    check_choice("ratio", kind, RATIOS)
    inside = jnp.asarray(mask) != 0
    # Masked before exp: an infinity at a padded position would otherwise poison the gradient.
    log_ratio = jnp.where(
        inside, logprobs - jax.lax.stop_gradient(jnp.asarray(old_logprobs, jnp.float32)), 0.0
    )
    if kind == "token":
        return jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    length = jnp.maximum(jnp.sum(inside, axis=1, keepdims=True), 1)
    mean = jax.lax.stop_gradient(jnp.sum(log_ratio, axis=1, keepdims=True) / length)
    own = jnp.where(inside, logprobs - jax.lax.stop_gradient(logprobs), 0.0)
    return jnp.where(inside, jnp.exp(jnp.minimum(mean + own, 10.0)), 1.0)


def policy_loss(
    logprobs: Float[Array | np.ndarray, "responses tokens"],
    old_logprobs: Float[Array | np.ndarray, "responses tokens"],
    advantages: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    clip_low: Scalar | None = 0.2,
    clip_high: Scalar | None = 0.2,
    dual_clip: Scalar | None = 3.0,
    ratio: str = "token",
    aggregation: str = "token_mean",
    denominator: Scalar | None = None,
    max_length: int | None = None,
    token_weights: Float[Array | np.ndarray, "responses tokens"] | None = None,
    importance_weights: Float[Array | np.ndarray, "responses tokens"] | None = None,
    ref_logprobs: Float[Array | np.ndarray, "responses tokens"] | None = None,
    kl_coefficient: Scalar = 0.0,
    kl_estimator: str = "k3",
    penalised: Bool[Array | np.ndarray, "responses tokens"] | None = None,
    penalty_coefficient: Scalar = 1.0,
) -> tuple[Float[Array, ""], PolicySums]:
    """The loss to minimise and the sums for its metrics. Differentiable in `logprobs` only.

    Per token, with r the ratio of `policy_ratio` and A the advantage:
    `-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, for A < 0 at most `-dual_clip * A`. Then times `token_weights`
    and `importance_weights`; plus `penalty_coefficient * |log r|` on the `penalised` tokens; plus
    `kl_coefficient * kl_estimate(logprobs, ref_logprobs)` where `ref_logprobs` are given. Aggregated by
    `aggregate(...) / denominator`.

    Args:
      logprobs, old_logprobs: log-probabilities of the sampled tokens, current and of the policy that sampled.
      advantages: one per token; detached.
      mask: which tokens are sampled ones; nothing outside it reaches loss or gradient.
      clip_low, clip_high, dual_clip: None switches the clip off.
      ratio: `token` or `sequence`, as in `policy_ratio`.
      aggregation: as in `loss_denominator`.
      denominator: `loss_denominator` of the global batch; with it, losses and gradients of microbatches add up to
        those of the whole. None: these arrays are the global batch.
      max_length: longest response allowed, in tokens, for `constant_length` without a `denominator`.
      token_weights: ResT's weights; detached.
      importance_weights: of truncated importance sampling; detached.
      ref_logprobs: log-probabilities under the reference model; detached.
      kl_coefficient, kl_estimator: of the KL term, as in `kl_estimate`.
      penalised: the tokens of KL-Cov, whose objective has no clip.
      penalty_coefficient: of KL-Cov's penalty.

    Raises:
      UserError: an unknown name, or a KL coefficient without reference log-probabilities.

    Source:
      PPO, 1707.06347, Eq. 7; dual clip, 1912.09729; ResT, 2509.21826; KL-Cov, 2505.22617.
    """
    inside = jnp.asarray(mask) != 0
    logprobs = jnp.asarray(logprobs, jnp.float32)
    advantages = jax.lax.stop_gradient(jnp.asarray(advantages, jnp.float32))
    old_logprobs = jax.lax.stop_gradient(jnp.asarray(old_logprobs, jnp.float32))
    r = policy_ratio(logprobs, old_logprobs, inside, ratio)

    unclipped = -r * advantages
    low = -jnp.inf if clip_low is None else 1 - clip_low
    high = jnp.inf if clip_high is None else 1 + clip_high
    loss = jnp.maximum(unclipped, -jnp.clip(r, low, high) * advantages)
    negative = advantages < 0
    dual_clipped = jnp.zeros_like(negative)
    if dual_clip is not None:
        dual_clipped = negative & (loss > -dual_clip * advantages)
        loss = jnp.where(dual_clipped, -dual_clip * advantages, loss)
    if token_weights is not None:
        loss *= jax.lax.stop_gradient(jnp.asarray(token_weights, jnp.float32))
    if importance_weights is not None:
        loss *= jax.lax.stop_gradient(jnp.asarray(importance_weights, jnp.float32))
    log_ratio = jnp.where(inside, logprobs - old_logprobs, 0.0)
    if penalised is not None:
        loss += jnp.where(penalised, penalty_coefficient * jnp.abs(log_ratio), 0.0)
    ref_kl = jnp.zeros_like(loss)
    if ref_logprobs is not None:
        ref_logprobs = jax.lax.stop_gradient(jnp.asarray(ref_logprobs, jnp.float32))
        ref_kl = kl_estimate(
            jnp.where(inside, logprobs, 0.0), jnp.where(inside, ref_logprobs, 0.0), kl_estimator
        )
        loss += kl_coefficient * ref_kl
    elif kl_coefficient:
        raise UserError(f"kl_coefficient {kl_coefficient} needs ref_logprobs; give them or set it to 0")

    if denominator is None:
        denominator = loss_denominator(
            inside, aggregation, max_length=max_length, token_weights=token_weights
        )
    denominator = jnp.asarray(denominator, jnp.float32)
    value = aggregate(loss, inside, aggregation) / jnp.where(denominator > 0, denominator, 1.0)

    def count(values: Array) -> Array:
        return jnp.sum(jnp.where(inside, values, 0.0), dtype=jnp.float32)

    sums = PolicySums(
        tokens=count(jnp.ones_like(r)),
        clipped_low=count(negative & (r < low)),
        clipped_high=count((advantages > 0) & (r > high)),
        dual_clipped=count(dual_clipped),
        penalised=count(jnp.zeros_like(inside) if penalised is None else jnp.asarray(penalised)),
        old_kl=count(-log_ratio),
        ref_kl=count(ref_kl),
        ratio=count(r),
        ratio_squared=count(r**2),
        ratio_min=jnp.min(jnp.where(inside, r, jnp.inf), initial=jnp.inf),
        ratio_max=jnp.max(jnp.where(inside, r, -jnp.inf), initial=-jnp.inf),
    )
    return value, jax.lax.stop_gradient(sums)
