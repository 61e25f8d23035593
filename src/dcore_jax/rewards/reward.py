"""What every reward function is given, and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from dcore_jax.calls import Call, CallFormat, ParsedResponse, calls_equal, parse_response


class Reward(NamedTuple):
    """The score of a response, in parts and as their sum."""

    total: float  # the sum of the parts
    parts: Mapping[str, float]  # name -> contribution to the total, e.g. {"format": 1.0, "correctness": -3.0}
    error: str | None = None  # why the calls of the response could not be parsed; None if they could


def sum_of(parts: Mapping[str, float], error: str | None) -> Reward:
    """A `Reward` whose total is the sum of its parts."""
    return Reward(sum(parts.values()), parts, error)


@dataclass(frozen=True)
class RewardInput:
    """One response and all that its reward may depend on."""

    response: str
    """The whole assistant turn, opening `<think>` included and end-of-turn token not."""
    reference: tuple[Call, ...] = ()
    """The calls that the turn should make, in order; empty: none is expected."""
    call_format: CallFormat = "python"
    """Notation of the calls in `response`."""
    expects_reply: bool | None = None
    """Whether the reference turn also replies to the user; None: it does if it makes no call."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """The conversation before the turn."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    """Schemas of the tools on offer, where the record has them apart from its messages."""
    category: str = ""
    """Of the prompt: its file's name, or what its row says."""
    origin: str = ""
    """Where the prompt comes from, as `prompts.jsonl:12`."""
    progress: float = 0.0
    """Share of the run's steps that are done, in [0, 1); 0 in greedy evaluations."""
    step: int = 0
    """Steps of the run that are done; 0 in greedy evaluations."""
    tokens: int = 0
    """Sampled tokens of the response, its end token included."""
    surprisal: float | None = None
    """Mean of -log pi over the sampled tokens, in nats; None in greedy evaluations."""
    truncated: bool = False
    """Whether the response was cut off at the length limit."""

    @cached_property
    def parsed(self) -> ParsedResponse:
        """The response as `calls.parse_response` reads it."""
        return parse_response(self.response, self.call_format)

    @property
    def thought(self) -> str | None:
        """The text between `<think>` and `</think>`; None for a response without a thought."""
        return self.parsed.thought

    @property
    def calls(self) -> tuple[Call, ...] | None:
        """The calls that the response makes; None where they cannot be parsed (`parsed.error` says why)."""
        return self.parsed.calls

    @property
    def reply(self) -> str:
        """The response's text for the user."""
        return self.parsed.reply

    @cached_property
    def correct(self) -> bool:
        """Whether the response makes exactly the reference calls, in any order."""
        return self.calls is not None and calls_equal(self.calls, self.reference, ordered=False)


RewardFunction: TypeAlias = Callable[[RewardInput], Reward]
