"""The interface that every engine stands behind: requests of token ids in, sampled token ids with log-probabilities out.

The rest of the code never asks which engine it talks to. Ids are never re-tokenised on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from dcore_jax.errors import UserError

# Colder, logits divided by the temperature leave float32; vLLM draws the same line.
COLDEST = 1e-5

# overlong: the prompt left no room for a single token in the engine's longest sequence; nothing was generated.
FinishReason = Literal["stop", "length", "overlong"]


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one request. The defaults sample the model's own distribution, as policy gradients need."""

    max_tokens: int = 512  # most new tokens, at least 1
    temperature: int | float = 1.0  # 0: greedy; else at least COLDEST
    top_p: int | float = 1.0  # smallest set of tokens with this mass; 1: all
    top_k: int = -1  # most probable tokens kept; -1: all
    stop_token_ids: tuple[int, ...] = ()  # besides the engine's end-of-sequence ids
    seed: int = 0  # equal seeds and prompts give equal samples; see `fan_out`
    ignore_eos: bool = False  # do not stop at the engine's end-of-sequence ids

    def __post_init__(self) -> None:
        problems = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (
                self.temperature == 0 or COLDEST <= self.temperature < float("inf"),
                f"0 (greedy) or at least {COLDEST:g}",
            ),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]; 1 keeps every token"),
            "top_k": (self.top_k == -1 or self.top_k >= 1, "-1 (every token) or at least 1"),
            "seed": (0 <= self.seed < 2**63, "in [0, 2**63)"),
        }
        for field, (fine, wanted) in problems.items():
            if not fine:
                raise UserError(
                    f"sampling {field}={getattr(self, field)} is not possible; it must be {wanted}"
                )


@dataclass(frozen=True)
class Request:
    """One prompt to continue."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    id: str | int = ""  # the caller's own; comes back as Sample.request_id


@dataclass(frozen=True)
class Sample:
    """One continuation, and all that training needs to know about how it was made."""

    request_id: str | int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]  # with the stop token, if one ended it
    # log p(ids[t]) at the sampling temperature (1 for greedy), of the full distribution before top-p and top-k; as many as ids
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int  # of the weights that sampled every one of the ids


class EngineStats(NamedTuple):
    """What an engine did since it was made."""

    requests: int = 0  # finished, whatever the reason
    prompt_tokens: int = 0  # of finished requests
    prefilled_tokens: int = 0  # run through the model; fewer where requests share a prompt
    generated_tokens: int = 0
    stop: int = 0  # requests by finish reason
    length: int = 0
    overlong: int = 0


@runtime_checkable
class Engine(Protocol):
    """What the recipes ask of an engine. Not thread-safe: one thread drives an engine."""

    @property
    def weight_version(self) -> int:
        """The version that update_weights was last given; 0 before."""

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and have not come back from `poll`."""

    @property
    def stats(self) -> EngineStats: ...

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Finishes all requests; samples come in the order of the requests. May run beside submitted ones.

        Raises:
          UserError: a request that no engine could serve (empty prompt, ids outside the vocabulary), before any is started.
        """

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests and returns at once; raises as `generate` does."""

    def poll(self) -> list[Sample]:
        """Works or waits for a moment; returns the submitted requests that finished, in no particular order.

        An empty list means that nothing finished in that moment; with nothing in flight it comes back at once.
        """

    def update_weights(self, weights: Any, version: int) -> None:
        """Samples from now on come from these weights (a Decoder, or its `nnx.state`) and carry this version.

        Raises:
          RuntimeError: requests are in flight; their samples would come from two versions.
        """

    def close(self) -> None:
        """Gives memory and processes back; requests in flight are lost."""


def fan_out(request: Request, samples: int) -> list[Request]:
    """The group of one prompt: `samples` requests that differ in their seeds only, ids `"<id>/0"`, `"<id>/1"`, ...

    Seeds derive from the request's seed and the member's number, so a group grows without changing its first members.
    """
    group = []
    for i in range(samples):
        words = np.random.SeedSequence([request.sampling.seed, i]).generate_state(2, np.uint32)
        seed = (int(words[0]) << 31) ^ int(words[1])
        group.append(replace(request, sampling=replace(request.sampling, seed=seed), id=f"{request.id}/{i}"))
    return group


def check_request(request: Request, vocab_size: int) -> None:
    """Raises UserError, naming request and field, for a request that no engine could serve."""
    ids, where = request.prompt_ids, f"request {request.id!r}"
    if not ids:
        raise UserError(f"{where}: prompt_ids is empty; a prompt needs at least one token")
    for field, values in (("prompt_ids", ids), ("sampling.stop_token_ids", request.sampling.stop_token_ids)):
        if any(not 0 <= i < vocab_size for i in values):
            wrong = next(i for i in values if not 0 <= i < vocab_size)
            raise UserError(
                f"{where}: {field} holds {wrong}, outside the vocabulary of {vocab_size}; is it the model's tokenizer?"
            )
