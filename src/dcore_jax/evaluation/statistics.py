"""Numbers about an evaluation's uncertainty: pass^k, bootstrap intervals, and the paired comparison of two runs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dcore_jax.errors import UserError

_RESAMPLES = 10_000
_CHUNK = 4_000_000  # numbers drawn at once


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def pass_hat_k(successes: Sequence[int], trials: Sequence[int], k: int) -> float:
    """pass^k: the chance that k independent attempts at an item all succeed, as its unbiased estimate averaged over items.

    Args:
      successes, trials: of each item; an item needs at least k trials.

    Raises:
      UserError: fewer than k trials of an item, or no items.

    Source:
      tau-bench, arXiv 2406.12045, section 4: C(c, k) / C(n, k) for c successes in n trials.
    """
    if not trials or min(trials) < k or k < 1:
        raise UserError(f"pass^{k} needs {k} trials of every item; there are {min(trials, default=0)}")
    return sum(math.comb(c, k) / math.comb(n, k) for c, n in zip(successes, trials, strict=True)) / len(
        trials
    )


def bootstrap_interval(
    values: Float[np.ndarray, "items"],
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean over items.

    Args:
      values: one of each item: its reward, or its mean reward over trials, so that the trials of an item stay together.

    Source:
      Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if not len(values):
        return Interval(math.nan, math.nan)
    means = _resampled_means(np.asarray(values, float), resamples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


class PairedDifference(NamedTuple):
    """Two runs on the same items: `b` minus `a`.

    Args:
      interval: paired bootstrap, 95 %.
      won, lost: items that only b, only a has right.
      p_value: exact two-sided McNemar test of won against lost.
    """

    difference: float
    interval: Interval
    won: int
    lost: int
    p_value: float


def paired_difference(
    a: Float[np.ndarray, "items"],
    b: Float[np.ndarray, "items"],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compares two runs item by item.

    Args:
      a, b: rewards of the same items in the same order; an item is right where its reward is 1.
    """
    right_a, right_b = a >= 1.0, b >= 1.0
    won, lost = int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())
    difference = float((b - a).mean()) if len(a) else math.nan
    return PairedDifference(
        difference,
        bootstrap_interval(b - a, resamples=resamples, seed=seed),
        won,
        lost,
        mcnemar_exact(won, lost),
    )


def mcnemar_exact(won: int, lost: int) -> float:
    """Two-sided exact p-value that items change either way with equal chance.

    Source:
      McNemar 1947, with the binomial distribution in the place of its approximation.
    """
    changed, fewer = won + lost, min(won, lost)
    tail = sum(math.comb(changed, i) for i in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**changed)) if changed else 1.0


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws with replacement: from the counts of each value, where there are few different ones."""
    random = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 64:
        return random.multinomial(len(values), counts / len(values), resamples) @ distinct / len(values)
    rows = max(1, _CHUNK // len(values))
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([values[random.integers(0, len(values), (n, len(values)))].mean(1) for n in sizes])
