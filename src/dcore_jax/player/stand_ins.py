"""Engines that hold no model: a script in its place, and a bare `generate` function."""

from collections.abc import Callable, Sequence
from typing import Any

from dcore_jax.engines.engine import EngineStats, Request, Sample


class BatchEngine:
    """An `Engine` of a function from requests to samples: what was submitted is generated at the next poll."""

    weight_version = 0

    def __init__(self, generate: Callable[[Sequence[Request]], list[Sample]]):
        self._generate = generate
        self._waiting: list[Request] = []

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def stats(self) -> EngineStats:
        return EngineStats()

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """The function's samples."""
        return self._generate(requests)

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit."""
        self._waiting += requests

    def poll(self) -> list[Sample]:
        """See Engine.poll."""
        waiting, self._waiting = self._waiting, []
        return self._generate(waiting) if waiting else []

    def update_weights(self, weights: Any, version: int) -> None:
        """Not possible."""
        raise RuntimeError("a function has no weights")

    def release(self) -> None:
        """See Engine.release: there is nothing to give back."""

    def close(self) -> None:
        """See Engine.close."""
        self._waiting = []


def scripted_engine(
    tokenizer: Any, text_of: Callable[[int, int], str], end_id: int | None = None
) -> BatchEngine:
    """An engine that says what a script says: reference calls played as a model, through `play`.

    Args:
      text_of: (the conversation's place in the list given to `play`, the turn's number) to the turn's text, without its end.
      end_id: ends each turn; by default the tokenizer's eos.
    """
    end = tokenizer.eos_token_id if end_id is None else end_id

    def generate(requests: Sequence[Request]) -> list[Sample]:
        samples = []
        for request in requests:
            number, _, turn = str(request.id).partition("/")
            text = text_of(int(number), int(turn))
            ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
            samples.append(Sample(request.id, tuple(request.prompt_ids), ids, (0.0,) * len(ids), "stop", 0))
        return samples

    return BatchEngine(generate)
