"""The interface of every engine: requests of token ids in, sampled token ids with their log-probabilities out.

The rest of the code does not depend on which engine it uses. Ids are never re-tokenised on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from dcore_jax.errors import UserError

# Below this, logits / temperature overflow float32; vLLM has the same limit.
MIN_TEMPERATURE = 1e-5

# overlong: the prompt left no room for a single token in the engine's longest sequence; nothing was generated.
FinishReason = Literal["stop", "length", "overlong"]


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one request. The defaults sample the model's own distribution, as policy gradients need."""

    max_tokens: int = 512  # most new tokens, at least 1
    temperature: int | float = 1.0  # 0: greedy; else at least MIN_TEMPERATURE
    top_p: int | float = 1.0  # smallest set of tokens with this mass; 1: all
    top_k: int = -1  # most probable tokens kept; -1: all
    stop_token_ids: tuple[int, ...] = ()  # besides the engine's end-of-sequence ids
    seed: int = 0  # equal seeds and prompts give equal samples; see `fan_out`
    ignore_eos: bool = False  # do not stop at the engine's end-of-sequence ids

    def __post_init__(self) -> None:
        problems = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (
                self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < float("inf"),
                f"0 (greedy) or at least {MIN_TEMPERATURE:g}",
            ),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]; 1 keeps every token"),
            "top_k": (self.top_k == -1 or self.top_k >= 1, "-1 (every token) or at least 1"),
            "seed": (0 <= self.seed < 2**63, "in [0, 2**63)"),
        }
        for field, (valid, wanted) in problems.items():
            if not valid:
                raise UserError(
                    f"sampling {field}={getattr(self, field)} is not possible; it must be {wanted}"
                )


@dataclass(frozen=True)
class Request:
    """One prompt to continue."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    id: str | int = ""  # chosen by the caller; returned as Sample.request_id


@dataclass(frozen=True)
class Sample:
    """One continuation, with what training needs to know about how it was sampled."""

    request_id: str | int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]  # with the stop token, if one ended it
    # log p(ids[t]) at the sampling temperature (1 for greedy), of the full distribution before top-p and top-k; as many as ids
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int  # of the weights that sampled every one of the ids

    @property
    def content_ids(self) -> tuple[int, ...]:
        """The ids without the stop token that ended them: what the model said, to be decoded as text."""
        return self.ids[:-1] if self.finish_reason == "stop" else self.ids


class EngineStats(NamedTuple):
    """Counters of an engine since it was created."""

    requests: int = 0  # finished, for any reason
    prompt_tokens: int = 0  # of finished requests
    prefilled_tokens: int = 0  # run through the model; fewer where requests share a prompt
    generated_tokens: int = 0
    stop: int = 0  # finished requests by finish reason
    length: int = 0
    overlong: int = 0


@runtime_checkable
class Engine(Protocol):
    """What the recipes need from an engine. Not thread-safe: one thread drives an engine."""

    @property
    def weight_version(self) -> int:
        """The version given to the last `update_weights`; before the first one, the version the engine started with."""

    @property
    def in_flight(self) -> int:
        """Number of submitted requests that `poll` has not returned yet."""

    @property
    def stats(self) -> EngineStats: ...

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Runs all requests to their end and returns their samples in the same order.

        Submitted requests that are still in flight go on at the same time.

        Raises:
          UserError: a request that no engine could serve (empty prompt, ids outside the vocabulary), before any is started.
        """

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests and returns at once; raises as `generate` does."""

    def poll(self) -> list[Sample]:
        """Works or waits for a moment, then returns the submitted requests that finished, in any order.

        An empty list means that none finished in that moment. With nothing in flight it returns at once.
        """

    def update_weights(self, weights: Any, version: int) -> None:
        """Samples from these weights from now on.

        Args:
          weights: a Decoder, or its `nnx.state`.
          version: `Sample.weight_version` from now on.

        Raises:
          RuntimeError: requests are in flight; their samples would come from two versions.
        """

    def release(self) -> None:
        """Gives device memory back, as far as the engine can, until the next `update_weights`, before which it cannot sample.

        Raises:
          RuntimeError: requests are in flight.
        """

    def close(self) -> None:
        """Frees memory and ends processes; requests in flight are dropped."""


def fan_out(request: Request, samples: int) -> list[Request]:
    """The group of one prompt: `samples` requests that differ only in their seeds, with ids `"<id>/0"`, `"<id>/1"`, ...

    A member's seed depends on the request's seed and the member's index alone, so a larger group starts with the same members.
    """
    group = []
    for i in range(samples):
        words = np.random.SeedSequence([request.sampling.seed, i]).generate_state(2, np.uint32)
        seed = (int(words[0]) << 31) ^ int(words[1])
        group.append(replace(request, sampling=replace(request.sampling, seed=seed), id=f"{request.id}/{i}"))
    return group


def check_request(request: Request, vocab_size: int) -> None:
    """Raises UserError, naming the request and the field, for a request that no engine could serve."""
    ids, name = request.prompt_ids, f"request {request.id!r}"
    if not ids:
        raise UserError(f"{name}: prompt_ids is empty; a prompt needs at least one token")
    for field, values in (("prompt_ids", ids), ("sampling.stop_token_ids", request.sampling.stop_token_ids)):
        if any(not 0 <= i < vocab_size for i in values):
            wrong = next(i for i in values if not 0 <= i < vocab_size)
            raise UserError(
                f"{name}: {field} holds {wrong}, outside the vocabulary of {vocab_size}; is it the model's tokenizer?"
            )
