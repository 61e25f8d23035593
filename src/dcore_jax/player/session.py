"""What a conversation is played against, and what comes of it: `Session` in, `Played` out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from dcore_jax.calls import Call, ParsedResponse
from dcore_jax.engines.engine import FinishReason

Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]] | None

# done: the session ended it. turns: max_turns were taken. length: no token fits into max_length any more. truncated: the session
# ended it after a turn that was cut at max_tokens. failed: the session raised, or did not come back in time.
Ended = Literal["done", "turns", "length", "truncated", "failed"]


class Opening(NamedTuple):
    """What the model is given before its first turn."""

    messages: Sequence[Message]  # OpenAI-style
    tools: Tools = None  # OpenAI function schemas


@dataclass(frozen=True)
class Turn:
    """One turn of the model."""

    number: int  # from 0
    text: str  # without the stop token, with what the template opened of it (`<think>`)
    parsed: ParsedResponse
    ids: tuple[int, ...]  # as sampled, with the stop token if one ended it
    logprobs: tuple[float, ...]
    prompt_length: int  # tokens before it
    finish_reason: FinishReason
    observations: tuple[str, ...] = ()  # what its calls returned, in order

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls that were run; none of a turn that was cut or cannot be read."""
        return self.parsed.calls or ()

    @property
    def error(self) -> str | None:
        """Why the turn cannot be read, or that it did not end."""
        return self.parsed.error


class Session:
    """One conversation's environment: opening messages, tools with state of their own, and a user who may say more.

    Subclass it and override what is needed. Everything that it changes must be its own: sessions are played at the same time. It
    is opened when its turn comes, so it may build its state in `open` and free it in `close`.
    """

    id: str = ""
    # Its methods return at once and may run in the player's own thread, without a limit of time.
    instant: bool = False

    def open(self) -> Opening:
        """The messages and tools before the first turn."""
        raise NotImplementedError

    def call(self, call: Call) -> str:
        """Runs one call. An exception, or one that takes too long, becomes an observation with an error."""
        raise NotImplementedError

    def reply(self, turn: Turn) -> Sequence[Message] | None:
        """What follows a turn without calls, cut, or unreadable (`turn.error`): messages; None ends the conversation."""
        return None

    @property
    def done(self) -> bool:
        """Asked after the calls of a turn: whether the conversation ends with them."""
        return False

    def parse(self, text: str) -> ParsedResponse | None:
        """How a turn's calls are read, where the session has a way of its own; None: as the chat template's notation has it."""
        return None

    def reward(self) -> float | None:
        """What the whole was worth, asked once at the end."""
        return None

    def close(self) -> None:
        """After the end, however it ended."""


class TokenSequence(NamedTuple):
    """Tokens as the model saw them, with what it sampled among them."""

    ids: Int32[np.ndarray, "length"]
    sampled: Bool[np.ndarray, "length"]  # by the model; all else is prompt, template or observation
    logprobs: Float32[np.ndarray, "length"]  # of the sampled ids; 0 elsewhere


@dataclass(frozen=True)
class Cut:
    """What limits took away, so that nothing is lost in silence."""

    turns: int = 0  # turns that ended at max_tokens or max_length
    calls: int = 0  # calls beyond max_calls, answered with an error
    observations: int = 0  # observations shortened to max_observation characters
    timeouts: int = 0  # calls that did not come back in time
    failures: int = 0  # calls that raised
    messages: int = 0  # messages for which max_length had no room


@dataclass(frozen=True, eq=False)
class Played:
    """A conversation that was played."""

    id: str
    session: Session
    sequences: tuple[
        TokenSequence, ...
    ]  # one where ids are appended; one per turn at most where turns are rendered anew
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]  # the whole conversation
    ended: Ended
    reward: float | None = None
    error: str | None = None  # why it failed
    cut: Cut = field(default_factory=Cut)
    weight_version: int = 0

    @property
    def calls(self) -> tuple[Call, ...]:
        """Of all turns, in order."""
        return tuple(call for turn in self.turns for call in turn.calls)

    @property
    def ids(self) -> Int32[np.ndarray, "length"]:
        """Of the last sequence, which is the whole conversation where ids are appended."""
        return self.sequences[-1].ids

    @property
    def sampled(self) -> Bool[np.ndarray, "length"]:
        return self.sequences[-1].sampled

    @property
    def logprobs(self) -> Float32[np.ndarray, "length"]:
        return self.sequences[-1].logprobs
