"""ResT (2509.21826): token weights by region that follow a curriculum and multiply the policy objective."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped

from dcore_jax.advantages.group_relative import Scalar, token_mask
from dcore_jax.errors import check_choice
from dcore_jax.regions.region import Region, RegionValues

REGIONS = len(Region)


class RegionEntropy(NamedTuple):
    """Additive pieces of each region's mean entropy, indexed by `Region`; those of microbatches add up."""

    total: Float[Array, "5"]  # sum of entropies, nats
    tokens: Float[Array, "5"]  # number of tokens

    def mean(self) -> Float[Array, "5"]:
        """Mean entropy of each region; NaN for a region without tokens."""
        return jnp.where(self.tokens > 0, self.total / jnp.maximum(self.tokens, 1), jnp.nan)


def region_entropy(
    entropy: Float[Array | np.ndarray, "responses tokens"],
    regions: Integer[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
) -> RegionEntropy:
    """Sum of entropies and number of masked tokens in each region."""
    inside = token_mask(mask).ravel()
    entropy = jnp.where(inside, jax.lax.stop_gradient(jnp.asarray(entropy, jnp.float32)).ravel(), 0.0)
    region = jnp.asarray(regions).ravel()
    total = jax.ops.segment_sum(entropy, region, REGIONS)
    return RegionEntropy(total, jax.ops.segment_sum(inside.astype(jnp.float32), region, REGIONS))


def entropy_region_weights(
    mean_entropy: Float[Array | np.ndarray, "5"], *, kind: str = "inverse"
) -> Float[Array, "5"]:
    """ResT's initial weights from the regions' mean entropies in nats.

    Weights of nearly certain regions are huge until `rest_weights` clips them.

    Args:
      mean_entropy: indexed by `Region`; a region without tokens (NaN) gets weight 1.
      kind: `inverse`: 1 / H. `collision`: 1 / (1 - exp(-H)), whose denominator bounds 1 - sum p^2 (Lemma 2).

    Raises:
      UserError: an unknown kind.

    Source:
      ResT, 2509.21826, Eq. 9 and Theorem 2.
    """
    check_choice("kind of entropy weights", kind, ("inverse", "collision"))
    entropy = jnp.maximum(jnp.asarray(mean_entropy, jnp.float32), 1e-8)
    weights = 1.0 / entropy if kind == "inverse" else -1.0 / jnp.expm1(-entropy)
    return jnp.where(jnp.isnan(weights), 1.0, weights)


def region_weight_table(
    initial: RegionValues | Float[Array | np.ndarray, "5"],
    *,
    rates: RegionValues,
    ceilings: RegionValues,
    progress: Scalar = 0.0,
    weight_min: Scalar = 0.001,
    weight_max: Scalar = 8.0,
) -> Float[Array, "5"]:
    """Each region's weight, by `Region`, before the response's mean is divided out; the arguments are `rest_weights`'."""
    start = jnp.asarray(initial.table() if isinstance(initial, RegionValues) else initial, jnp.float32)
    left_out = start <= 0
    start = jnp.clip(start, weight_min, weight_max)
    moved = start + jnp.asarray(rates.table(), jnp.float32) * progress
    # A ceiling stops a rise; it does not cut down a weight that starts above it.
    moved = jnp.minimum(moved, jnp.maximum(jnp.asarray(ceilings.table(), jnp.float32), start))
    return jnp.where(left_out, 0.0, jnp.clip(moved, weight_min, weight_max))


def rest_weights(
    regions: Integer[Array | np.ndarray, "responses tokens"],
    mask: Shaped[Array | np.ndarray, "responses tokens"],
    *,
    initial: RegionValues | Float[Array | np.ndarray, "5"],
    rates: RegionValues,
    ceilings: RegionValues,
    progress: Scalar = 0.0,
    weight_min: Scalar = 0.001,
    weight_max: Scalar = 8.0,
) -> Float[Array, "responses tokens"]:
    """Every token's weight: its region's `initial + rate * progress`, clipped, then normalised to mean 1.

    Weights are clipped to `[weight_min, weight_max]` and divided by their mean over the masked tokens of the response
    that have a positive weight. 0 outside `mask`.

    Args:
      regions: the `Region` of every token.
      mask: which tokens are sampled ones.
      initial: starting weight of each region, clipped to `[weight_min, weight_max]` too, so that a weight from above
        the range begins to fall at once. A region that starts at 0 is left out: its tokens weigh 0 and do not count in
        the mean.
      rates: signed change per unit of `progress`: format falls, parameters and thinking rise, names stay.
      ceilings: where a rise stops: `min(initial + rate * progress, max(ceiling, initial))`.
      progress: in the unit that the rates are given for; the authors' code counts training steps.
      weight_min, weight_max: bounds before the normalisation.

    Source:
      ResT, 2509.21826, Eq. 16-19.
    """
    by_region = region_weight_table(
        initial,
        rates=rates,
        ceilings=ceilings,
        progress=progress,
        weight_min=weight_min,
        weight_max=weight_max,
    )
    weights = jnp.where(token_mask(mask), by_region[jnp.asarray(regions)], 0.0)
    counted = jnp.sum(weights > 0, axis=1, keepdims=True)
    mean = jnp.sum(weights, axis=1, keepdims=True) / jnp.maximum(counted, 1)
    return weights / jnp.where(mean > 0, mean, 1.0)
