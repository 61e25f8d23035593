"""Estimators of KL(pi || pi_ref) from the log-probabilities of sampled tokens."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dcore_jax.errors import UserError

KL_ESTIMATORS = ("k1", "k2", "k3", "low_var_kl")


def kl_estimate(
    logprobs: Float[Array | np.ndarray, "*shape"],
    ref_logprobs: Float[Array | np.ndarray, "*shape"],
    estimator: str = "k3",
) -> Float[Array, "*shape"]:
    """Per-token estimate of KL(pi || pi_ref) in nats (Schulman, 2020), with d = log pi_ref - log pi.

    `k1`: -d, unbiased, may be negative. `k2`: d^2 / 2. `k3`: exp(d) - d - 1, unbiased and never negative, d
    limited to [-20, 20] so that exp stays finite. `low_var_kl`: k3 as the released code has it, the value
    itself cut off at 10 (no gradient flows where it is). Raises `UserError` for another name.
    """
    gap = jnp.asarray(ref_logprobs, jnp.float32) - jnp.asarray(logprobs, jnp.float32)
    if estimator == "k1":
        return -gap
    if estimator == "k2":
        return 0.5 * gap**2
    if estimator not in KL_ESTIMATORS:
        raise UserError(f"KL estimator {estimator!r} is unknown; choose one of {', '.join(KL_ESTIMATORS)}")
    gap = jnp.clip(gap, -20.0, 20.0)
    k3 = jnp.expm1(gap) - gap
    return jnp.minimum(k3, 10.0) if estimator == "low_var_kl" else k3
