"""Estimators of KL(pi || pi_ref) from the log-probabilities of sampled tokens."""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
