"""What goes over the wire: a request as a body of `/inference/v1/generate`, and an answer read without trust.

That call of vLLM's takes token ids and gives token ids, with the version of the weights that sampled them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcore_jax.engines.engine import FinishReason, Request, Sample


class BadAnswer(Exception):
    """An answer that a healthy server does not give; asking again, or another server, may help."""


@dataclass(frozen=True)
class Question:
    """A request as it is asked: with its limit and with every token that ends it."""

    request: Request
    limit: int  # most new tokens; at least 1
    stops: frozenset[int]
    vocab_size: int

    @classmethod
    def of(cls, request: Request, eos: Sequence[int], max_length: int, vocab_size: int) -> "Question | None":
        """None where the prompt leaves no room for a token: it is overlong."""
        wish = request.sampling
        limit = min(wish.max_tokens, max_length - len(request.prompt_ids))
        if limit < 1:
            return None
        stops = frozenset(wish.stop_token_ids) | (frozenset() if wish.ignore_eos else frozenset(eos))
        return cls(request, limit, stops, vocab_size)

    @property
    def sampling(self) -> dict[str, Any]:
        """vLLM's sampling parameters. Every field that shapes the distribution is named, so that no default comes in."""
        wish = self.request.sampling
        return {
            "n": 1,
            "max_tokens": self.limit,
            "temperature": float(wish.temperature),
            "top_p": float(wish.top_p),
            "top_k": wish.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": wish.seed,
            # The ends of sequences are ours to name: vLLM's own notion of them is switched off.
            "ignore_eos": True,
            "stop_token_ids": sorted(self.stops),
            "logprobs": 0,  # of the sampled tokens alone
            "detokenize": False,
        }

    def body(self, model: str) -> dict[str, Any]:
        """The JSON body."""
        return {"model": model, "token_ids": list(self.request.prompt_ids), "sampling_params": self.sampling}

    def read(
        self, payload: Any, weights: str = ""
    ) -> tuple[tuple[int, ...], tuple[float, ...], FinishReason]:
        """Token ids, log-probabilities and finish reason of an answer.

        Args:
          weights: the name of the weights that must have sampled every token; empty: any.

        Raises:
          BadAnswer: anything that this question cannot have as an answer.
        """
        try:
            (choice,) = payload["choices"]
            ids, reason = choice["token_ids"], choice["finish_reason"]
            logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            spans = choice.get("weight_versions")
        except (TypeError, KeyError, ValueError):
            raise BadAnswer("an answer without token ids and log-probabilities") from None
        # Sets and extremes instead of loops: this runs for every token of every answer.
        if not isinstance(ids, list) or len(ids) != len(logprobs) or not ids:
            raise BadAnswer("an answer whose token ids and log-probabilities are not equally many")
        if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= self.vocab_size:
            raise BadAnswer(f"token ids outside the vocabulary of {self.vocab_size}")
        if set(map(type, logprobs)) != {float} or not math.isfinite(sum(logprobs)) or max(logprobs) > 1e-3:
            raise BadAnswer("log-probabilities that are not finite, or above 0")
        ended = ids[-1] in self.stops
        if not self.stops.isdisjoint(ids[:-1]) or len(ids) > self.limit:
            raise BadAnswer("an answer that runs past its end")
        if not (reason == "stop" and ended) and not (reason == "length" and len(ids) == self.limit):
            raise BadAnswer(f"finish reason {reason!r} after {len(ids)} of {self.limit} tokens")
        if weights and spans != [{"version": weights, "start": 0, "end": len(ids)}]:
            raise BadAnswer("tokens of other weights than the current ones")
        return tuple(ids), tuple(logprobs), "stop" if ended else "length"

    def sample(self, payload: Any, version: int, weights: str = "") -> Sample:
        """The answer as a sample of that weight version; raises as `read`."""
        ids, logprobs, reason = self.read(payload, weights)
        return Sample(self.request.id, self.request.prompt_ids, ids, logprobs, reason, version)


def tally(sample: Sample) -> dict[str, int]:
    """What a finished sample adds to the fields of EngineStats."""
    prompt = len(sample.prompt_ids)
    return {
        "requests": 1,
        "prompt_tokens": prompt,
        "prefilled_tokens": 0 if sample.finish_reason == "overlong" else prompt,
        "generated_tokens": len(sample.ids),
        sample.finish_reason: 1,
    }


def overlong(request: Request, version: int) -> Sample:
    """The sample of a prompt that leaves no room."""
    return Sample(request.id, request.prompt_ids, (), (), "overlong", version)
