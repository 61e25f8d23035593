"""Estimators of KL(pi || pi_ref) from the log-probabilities of sampled tokens."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from dcore_jax.errors import check_choice

KLEstimator = Literal["k1", "k2", "k3", "low_var_kl"]
KL_ESTIMATORS: tuple[str, ...] = get_args(KLEstimator)


def kl_estimate(
    logprobs: Float[Array | np.ndarray, "*shape"],
    ref_logprobs: Float[Array | np.ndarray, "*shape"],
    estimator: str = "k3",
) -> Float[Array, "*shape"]:
    """Per-token estimate of KL(pi || pi_ref) in nats, with d = log pi_ref - log pi.

    Args:
      logprobs: log pi of the sampled tokens; differentiable in them.
      ref_logprobs: log pi_ref of the same tokens.
      estimator: `k1`: -d, unbiased, may be negative. `k2`: d^2 / 2. `k3`: exp(d) - d - 1, unbiased and never negative,
        d limited to [-20, 20] so that exp stays finite. `low_var_kl`: k3 as the released code has it, the value itself
        cut off at 10 (no gradient flows where it is).

    Raises:
      UserError: an unknown estimator.

    Source:
      J. Schulman, "Approximating KL divergence", 2020.
    """
    check_choice("KL estimator", estimator, KL_ESTIMATORS)
    gap = jnp.asarray(ref_logprobs, jnp.float32) - jnp.asarray(logprobs, jnp.float32)
    if estimator == "k1":
        return -gap
    if estimator == "k2":
        return 0.5 * gap**2
    gap = jnp.clip(gap, -20.0, 20.0)
    k3 = jnp.expm1(gap) - gap
    return jnp.minimum(k3, 10.0) if estimator == "low_var_kl" else k3


def kl_in_reward(
    rewards: Num[Array | np.ndarray, "responses"],
    logprobs: Float[Array | np.ndarray, "responses tokens"],
    ref_logprobs: Float[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    coefficient: float | Float[Array, ""],
    estimator: str = "k1",
) -> Float[Array, "responses"]:
    """R_i - coefficient * sum_t kl_t: rewards from which every sampled token's KL to the reference model is subtracted.

    The released code of ToolRL takes it from each token's own reward; GRPO's advantage is made of their sum, which is this.

    Args:
      logprobs: log-probabilities of the sampled tokens under the policy that sampled; no gradient flows through them.
      ref_logprobs: those under the reference model.
      mask: which tokens are sampled ones.
      estimator: as in `kl_estimate`.

    Raises:
      UserError: an unknown estimator.

    Source:
      InstructGPT, 2203.02155, Eq. 2; ToolRL, 2504.13958, its code.
    """
    inside = jnp.asarray(mask) != 0
    current = jnp.where(inside, jnp.asarray(logprobs, jnp.float32), 0.0)
    reference = jnp.where(inside, jnp.asarray(ref_logprobs, jnp.float32), 0.0)
    kl = jax.lax.stop_gradient(kl_estimate(current, reference, estimator))
    return jnp.asarray(rewards, jnp.float32) - coefficient * jnp.sum(kl, axis=1)
