"""A policy small enough to check by hand: three tokens, each with logits that depend on the token before it.

Everything here is float64 NumPy written as loops over responses and tokens, apart from the library: rewards to advantages,
advantages to a loss, and gradients by central differences. Tests compare the library's float32 steps with it.
"""

from dataclasses import dataclass, replace

import numpy as np

VOCABULARY = 3
START = 3  # the row of logits for the first token
ALPHA, DELTA = 0.1, 0.5


@dataclass(frozen=True)
class Rollouts:
    """Sampled tokens of a few prompts, the logits that sampled them, and those of a reference policy."""

    tokens: np.ndarray  # [responses, tokens]
    lengths: np.ndarray
    rewards: np.ndarray
    correct: np.ndarray  # of booleans; not always what the reward's sign says
    groups: np.ndarray
    regions: np.ndarray  # [responses, tokens]
    old: np.ndarray  # [4, 3] logits
    reference: np.ndarray  # [4, 3] logits

    @property
    def mask(self) -> np.ndarray:
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]


def sample_rollouts(seed: int, length: int = 5) -> Rollouts:
    """Two groups with reward variance, one of them with a response at its mean, and two without (one in part right, one
    wrong); responses of 1 to `length` tokens."""
    rng = np.random.default_rng(seed)
    rollouts = Rollouts(
        tokens=rng.integers(0, VOCABULARY, (8, length)),
        lengths=rng.integers(1, length + 1, 8),
        rewards=np.array([1.0, -1.0, 0.5, 3.0, 2.0, 2.0, -3.0, -3.0]),
        correct=np.array([1, 0, 0, 1, 1, 0, 0, 0], bool),
        groups=np.array([0, 0, 1, 1, 2, 2, 3, 3]),
        regions=rng.integers(0, 5, (8, length)),
        old=rng.normal(size=(VOCABULARY + 1, VOCABULARY)),
        reference=rng.normal(size=(VOCABULARY + 1, VOCABULARY)),
    )
    return replace(
        rollouts,
        tokens=np.vstack([rollouts.tokens, rng.integers(0, VOCABULARY, length)]),
        lengths=np.append(rollouts.lengths, length),
        rewards=np.append(rollouts.rewards, 1.75),
        correct=np.append(rollouts.correct, False),
        groups=np.append(rollouts.groups, 1),
        regions=np.vstack([rollouts.regions, rng.integers(0, 5, length)]),
    )


def previous_tokens(tokens: np.ndarray) -> np.ndarray:
    """The row of logits that each token was sampled from."""
    return np.concatenate([np.full((len(tokens), 1), START), tokens[:, :-1]], axis=1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def token_logprobs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return log_softmax(logits)[previous_tokens(tokens), tokens]


def token_entropies(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    table = log_softmax(logits)
    return -np.sum(np.exp(table) * table, axis=-1)[previous_tokens(tokens)]


def advantages(rollouts: Rollouts, kind: str, scale: float, ddof: int = 1) -> np.ndarray:
    """GRPO, Dr.GRPO, DA-GRPO or RL-ZVP (the paper's, or the release's by the reward's sign), one token at a time."""
    entropy = token_entropies(rollouts.old, rollouts.tokens)
    out = np.zeros(rollouts.tokens.shape)
    for i, (reward, group) in enumerate(zip(rollouts.rewards, rollouts.groups)):
        members = rollouts.rewards[rollouts.groups == group]
        for t in range(rollouts.lengths[i]):
            centred = reward - members.mean()
            out[i, t] = centred if kind == "dr_grpo" else centred / (members.std(ddof=ddof) + 1e-6)
            if kind == "da_grpo" and centred == 0:
                out[i, t] = scale * min(ALPHA * entropy[i, t], DELTA)
            highest = entropy[i, : rollouts.lengths[i]].max()
            if kind == "rl_zvp" and np.ptp(members) == 0:
                out[i, t] = scale * ALPHA * (entropy[i, t] - (0 if rollouts.correct[i] else highest))
            if kind == "rl_zvp_release" and centred == 0:
                out[i, t] = scale * ALPHA * (entropy[i, t] - (0 if reward > 0 else highest))
    return out


def region_weights(rollouts: Rollouts, table: list[float]) -> np.ndarray:
    """ResT's weights of each response: the table's values, made to have mean 1 over those above 0."""
    out = np.zeros(rollouts.tokens.shape)
    for i, length in enumerate(rollouts.lengths):
        values = np.array([table[region] for region in rollouts.regions[i, :length]])
        if np.any(values > 0):
            out[i, :length] = values / values[values > 0].mean()
    return out


def top_covariance(
    logits: np.ndarray, rollouts: Rollouts, values: np.ndarray, ratio: float
) -> set[tuple[int, int]]:
    """The tokens KL-Cov penalises in an update that starts from `logits`."""
    logprobs = token_logprobs(logits, rollouts.tokens)
    places = [(i, t) for i, length in enumerate(rollouts.lengths) for t in range(length)]
    mean_a = np.mean([values[p] for p in places])
    mean_l = np.mean([logprobs[p] for p in places])
    ranked = sorted(places, key=lambda p: -(values[p] - mean_a) * (logprobs[p] - mean_l))
    return set(ranked[: max(1, int(len(places) * ratio))])


def loss(
    logits: np.ndarray,
    rollouts: Rollouts,
    *,
    advantage: str = "grpo",
    scale: float = 1.0,
    low: float = np.inf,
    high: float = np.inf,
    dual: float = np.inf,
    aggregation: str = "token_mean",
    kl: float = 0.0,
    kl_limit: float = np.inf,
    sequence_ratio: bool = False,
    weights: list[float] | None = None,
    kl_cov: float = 0.0,
    max_length: int = 5,
    ddof: int = 1,
    start: np.ndarray | None = None,
) -> float:
    """The loss of one step as the papers write it, with `np.inf` for a clip that is off.

    `start` are the logits at which KL-Cov chooses, by default those of the loss.
    """
    values = advantages(rollouts, advantage, scale, ddof)
    current = token_logprobs(logits, rollouts.tokens)
    old = token_logprobs(rollouts.old, rollouts.tokens)
    reference = token_logprobs(rollouts.reference, rollouts.tokens)
    chosen_at = logits if start is None else start
    penalised = top_covariance(chosen_at, rollouts, values, kl_cov) if kl_cov else set()
    weight = region_weights(rollouts, weights) if weights else np.ones_like(current)
    per_response, tokens, weighed = [], 0, 0.0
    for i, length in enumerate(rollouts.lengths):
        terms = []
        for t in range(length):
            a = values[i, t]
            r = np.exp(current[i, t] - old[i, t])
            if sequence_ratio:
                r = np.exp(np.mean(current[i, :length] - old[i, :length]))
            term = min(r * a, np.clip(r, 1 - low, 1 + high) * a)
            if a < 0:
                term = max(term, dual * a)
            term = -weight[i, t] * term
            if (i, t) in penalised:
                term += abs(current[i, t] - old[i, t])
            if kl:
                gap = reference[i, t] - current[i, t]
                term += kl * min(np.exp(gap) - gap - 1, kl_limit)
            terms.append(term)
        per_response.append(terms)
        tokens += length
        weighed += weight[i, :length].sum()
    if aggregation == "sequence_mean":
        return float(np.mean([np.mean(terms) for terms in per_response]))
    total = sum(map(sum, per_response))
    divisors = {"token_mean": tokens, "constant_length": len(per_response) * max_length, "weighted": weighed}
    return float(total / divisors[aggregation])


def gradient(logits: np.ndarray, rollouts: Rollouts, **options) -> np.ndarray:
    """Central differences of `loss` in float64."""
    out, step = np.zeros_like(logits), 1e-6
    for place in np.ndindex(logits.shape):
        shift = np.zeros_like(logits)
        shift[place] = step
        above = loss(logits + shift, rollouts, start=logits, **options)
        out[place] = above - loss(logits - shift, rollouts, start=logits, **options)
    return out / (2 * step)
