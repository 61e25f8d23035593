"""The entropy of a response as a reward, to be added to another one with a weight: `--reward rest_paper entropy=0.01`."""

from dataclasses import dataclass

from dcore_jax.rewards.reward import Reward, RewardInput, sum_of

ENTROPY = "entropy"


@dataclass(frozen=True)
class EntropyReward:
    """R = mean over the response's tokens of -log pi(y_t), in nats, at the sampling temperature.

    An unbiased estimate, from the sampled tokens, of the mean entropy of the distributions that they were drawn from; a weight
    above 0 rewards uncertain responses, one below 0 certain ones. 0 where no log-probabilities are known: in greedy evaluations,
    and where references are scored before a run.

    Source:
      The entropy reward of ResT, 2509.21826, appendix A.1.
    """

    name: str = ENTROPY

    def __call__(self, given: RewardInput) -> Reward:
        """The reward of one response."""
        return sum_of({self.name: given.surprisal or 0.0}, given.parsed.error)

    @property
    def spec(self) -> str:
        """The name that a user gives it."""
        return self.name
