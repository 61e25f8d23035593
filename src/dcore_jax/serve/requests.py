"""Bodies of requests as OpenAI's clients send them, checked field by field."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcore_jax.engines.engine import MIN_TEMPERATURE, SamplingParams

_MOST_CHOICES, _MOST_STOPS = 128, 16
# Fields that change nothing in what is sampled here.
_HARMLESS = frozenset({
    "model", "user", "store", "metadata", "service_tier", "stream_options", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "skip_special_tokens", "spaces_between_special_tokens", "add_special_tokens",
    "chat_template_kwargs", "reasoning_effort", "verbosity", "include_stop_str_in_output", "detokenize",
})  # fmt: skip
# Fields that would change it, with the values that say nothing.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "repetition_penalty": (None, 1), "min_p": (None, 0),
    "logit_bias": (None, {}), "best_of": (None, 1), "suffix": (None, ""), "echo": (None, False), "response_format": (
    None, {"type": "text"}), "functions": (None, []), "audio": (None,), "modalities": (None, ["text"]), "prediction": (None,),
    "guided_json": (None,), "guided_regex": (None,), "guided_choice": (None,), "web_search_options": (None,),
    "min_tokens": (None, 0), "use_beam_search": (None, False), "length_penalty": (None, 1),
}  # fmt: skip
_READ = frozenset({
    "prompt", "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed",
    "stop", "stop_token_ids", "ignore_eos", "n", "stream", "logprobs", "top_logprobs",
})  # fmt: skip


class BadRequest(Exception):
    """A request that cannot be served: the field, what is wrong with it, and the status."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True)
class Wanted:
    """What every kind of completion asks for."""

    max_tokens: int | None  # None: as many as there is room for
    sampling: SamplingParams  # with max_tokens still to be set
    stop: tuple[str, ...]
    choices: int
    stream: bool
    stream_usage: bool
    logprobs: bool
    skip_special_tokens: bool | None
    unknown: tuple[str, ...]  # fields that nothing here reads


def decode_body(text: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises BadRequest."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def read_wanted(body: Mapping[str, Any], *, chat: bool) -> Wanted:
    """The fields that chat and plain completions share.

    Raises:
      BadRequest: a value of the wrong type or out of range, or a field that would change the result and is not supported.
    """
    for name, neutral in _UNSUPPORTED.items():
        if name in body and body[name] not in neutral:
            raise BadRequest(f"{name} is not supported; leave it out", param=name)
    temperature = _number(body, "temperature", 1.0, 0, 1e6)
    limit = _integer(
        body,
        "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens",
        None,
        1,
    )
    logprobs = body.get("logprobs")
    if chat and logprobs not in (None, False, True):
        raise BadRequest("logprobs must be true or false", param="logprobs")
    if not chat and logprobs is not None and logprobs is not False:
        _integer(body, "logprobs", None, 0, 20)
    if _integer(body, "top_logprobs", 0, 0, 20):
        raise BadRequest(
            "top_logprobs is not supported: only those of the sampled tokens are known",
            param="top_logprobs",
        )
    stops = body.get("stop_token_ids") or []
    if not isinstance(stops, list) or any(type(i) is not int or i < 0 for i in stops):
        raise BadRequest("stop_token_ids must be a list of token ids", param="stop_token_ids")
    top_k = _integer(body, "top_k", -1, -1)
    seed = _integer(body, "seed", None, -(2**63))
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("stream_options must be an object", param="stream_options")
    skip = body.get("skip_special_tokens")
    top_p = _number(body, "top_p", 1.0, 0, 1)
    if top_p == 0:
        raise BadRequest("top_p must be above 0", param="top_p")
    return Wanted(
        max_tokens=limit if limit is not None or chat else 16,  # OpenAI's number for plain completions
        sampling=SamplingParams(
            temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
            top_p=top_p,
            top_k=-1 if top_k in (-1, 0, None) else top_k,
            stop_token_ids=tuple(stops),
            seed=secrets.randbits(62) if seed is None else seed % 2**63,
            ignore_eos=_flag(body, "ignore_eos"),
        ),
        stop=_stops(body.get("stop")),
        choices=_integer(body, "n", 1, 1, _MOST_CHOICES) or 1,
        stream=_flag(body, "stream"),
        stream_usage=bool(options.get("include_usage")),
        logprobs=logprobs is not None and logprobs is not False,
        skip_special_tokens=None if skip is None else bool(skip),
        unknown=tuple(sorted(set(body) - _READ - _HARMLESS - set(_UNSUPPORTED))),
    )


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest("stop must be a text or a list of texts", param="stop")
    if len(stops) > _MOST_STOPS:
        raise BadRequest(f"stop holds {len(stops)} texts; {_MOST_STOPS} at most", param="stop")
    return tuple(stop for stop in stops if stop)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise BadRequest(f"{name} must be true or false", param=name)
    return bool(value)


def _number(body: Mapping[str, Any], name: str, default: float, low: int | float, high: int | float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(
            f"{name} must be a number between {low:g} and {high:g}, not {str(value)[:40]!r}", param=name
        )
    return float(value)


def _integer(
    body: Mapping[str, Any], name: str, default: int | None, low: int, high: int = 2**63
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number of at least {low}, not {str(value)[:40]!r}"
                         if high == 2**63 else f"{name} must be a whole number from {low} to {high}, not {str(value)[:40]!r}",
                         param=name)  # fmt: skip
    return value
