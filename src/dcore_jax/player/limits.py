"""The limits of a conversation."""

from dataclasses import dataclass

from dcore_jax.errors import UserError


@dataclass(frozen=True)
class Limits:
    """How far a conversation may go. What a limit takes away is counted in `Played.cut`."""

    max_length: int = 4096
    """Most tokens of the whole conversation: prompt, turns and observations together."""
    max_tokens: int = 512
    """Most tokens of one turn."""
    max_turns: int = 16
    """Turns of the model in one conversation."""
    max_calls: int = 64
    """Calls that are run in one conversation; further ones are answered with an error."""
    max_observation: int = 16_384
    """Characters of one observation; the rest is cut, and says so."""
    call_seconds: int | float = 10.0
    """Time for one call of a tool."""
    reply_seconds: int | float = 120.0
    """Time for the session to open, and for its user to reply."""
    at_once: int = 64
    """Conversations under way at the same time; best not fewer than the engine's slots."""

    def __post_init__(self) -> None:
        least = {
            "max_length": 2,
            "max_tokens": 1,
            "max_turns": 1,
            "max_calls": 0,
            "max_observation": 1,
            "at_once": 1,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"{name}={getattr(self, name)} must be at least {value}")
        for name in ("call_seconds", "reply_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be above 0")
