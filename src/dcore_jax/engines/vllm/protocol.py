"""The wire format of vLLM's `/inference/v1/generate`: request bodies, and responses that are validated before use.

That endpoint takes token ids and returns token ids, with the version of the weights that sampled them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcore_jax.engines.engine import FinishReason, Request, Sample


class InvalidResponse(Exception):
    """A response that a healthy server does not give; a retry, here or on another server, may succeed."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request with its token limit and every stop token resolved, ready to be sent."""

    request: Request
    max_tokens: int  # at least 1: what the request asks for, or what the engine's longest sequence leaves
    stop_ids: frozenset[int]
    vocab_size: int

    @classmethod
    def from_request(
        cls, request: Request, eos: Sequence[int], max_length: int, vocab_size: int
    ) -> "PreparedRequest | None":
        """None where the prompt leaves no room for a token: the request is overlong."""
        params = request.sampling
        max_tokens = min(params.max_tokens, max_length - len(request.prompt_ids))
        if max_tokens < 1:
            return None
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(eos))
        return cls(request, max_tokens, stop_ids, vocab_size)

    @property
    def sampling_params(self) -> dict[str, Any]:
        """vLLM's sampling parameters. Every field that shapes the distribution is given, so that no server default applies."""
        params = self.request.sampling
        return {
            "n": 1,
            "max_tokens": self.max_tokens,
            "temperature": float(params.temperature),
            "top_p": float(params.top_p),
            "top_k": params.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": params.seed,
            # All stop tokens are in `stop_ids`; vLLM's own end-of-sequence ids, from the model's folder, must not add to them.
            "ignore_eos": True,
            "stop_token_ids": sorted(self.stop_ids),
            "logprobs": 0,  # 0: of the sampled tokens only
            "detokenize": False,
        }

    def body(self, model: str) -> dict[str, Any]:
        """The JSON body of the request."""
        return {
            "model": model,
            "token_ids": list(self.request.prompt_ids),
            "sampling_params": self.sampling_params,
        }

    def parse(
        self, payload: Any, weights: str = ""
    ) -> tuple[tuple[int, ...], tuple[float, ...], FinishReason]:
        """Token ids, log-probabilities and finish reason of a response.

        Args:
          payload: the decoded JSON, which may be anything.
          weights: the name of the weights that must have sampled every token; empty: any.

        Raises:
          InvalidResponse: the payload cannot be the response to this request.
        """
        try:
            (choice,) = payload["choices"]
            ids, reason = choice["token_ids"], choice["finish_reason"]
            logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            spans = choice.get("weight_versions")
        except (TypeError, KeyError, ValueError):
            raise InvalidResponse("a response without token ids and log-probabilities") from None
        # Sets and extremes instead of loops: this runs for every token of every response.
        if not isinstance(ids, list) or len(ids) != len(logprobs) or not ids:
            raise InvalidResponse("a response with different numbers of token ids and log-probabilities")
        if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= self.vocab_size:
            raise InvalidResponse(f"token ids outside the vocabulary of {self.vocab_size}")
        if set(map(type, logprobs)) != {float} or not math.isfinite(sum(logprobs)) or max(logprobs) > 1e-3:
            raise InvalidResponse("log-probabilities that are not finite, or above 0")
        stopped = ids[-1] in self.stop_ids
        if not self.stop_ids.isdisjoint(ids[:-1]) or len(ids) > self.max_tokens:
            raise InvalidResponse("a response that continues after a stop token or its token limit")
        if not (reason == "stop" and stopped) and not (reason == "length" and len(ids) == self.max_tokens):
            raise InvalidResponse(f"finish reason {reason!r} after {len(ids)} of {self.max_tokens} tokens")
        if weights and spans != [{"version": weights, "start": 0, "end": len(ids)}]:
            raise InvalidResponse("tokens sampled by other weights than the current ones")
        return tuple(ids), tuple(logprobs), "stop" if stopped else "length"

    def to_sample(self, payload: Any, version: int, weights: str = "") -> Sample:
        """The response as a Sample of that weight version; raises as `parse`."""
        ids, logprobs, reason = self.parse(payload, weights)
        return Sample(self.request.id, self.request.prompt_ids, ids, logprobs, reason, version)


def overlong_sample(request: Request, version: int) -> Sample:
    """The empty sample of a prompt that leaves no room for a token."""
    return Sample(request.id, request.prompt_ids, (), (), "overlong", version)


def stats_of(sample: Sample) -> dict[str, int]:
    """What a finished sample adds to the fields of EngineStats."""
    prompt = len(sample.prompt_ids)
    return {
        "requests": 1,
        "prompt_tokens": prompt,
        "prefilled_tokens": 0 if sample.finish_reason == "overlong" else prompt,
        "generated_tokens": len(sample.ids),
        sample.finish_reason: 1,
    }
