"""Bodies of responses, as OpenAI writes them."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dcore_jax.serve.generation import Piece

Json = dict[str, Any]


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Json:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def new_head(kind: str, model: str) -> Json:
    """What all chunks of a response share."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Tokens of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def completion_logprobs(tokenizer: Any, piece: Piece, start: int = 0, offset: int = 0) -> Json:
    """Of a plain completion, from the `start`-th id on, whose text begins at `offset`."""
    tokens = [tokenizer.decode([i]) for i in piece.ids[start:]]
    offsets = [offset]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": list(piece.logprobs[start:]),
        "top_logprobs": None,  # the engine knows those of the sampled ids alone
        "text_offset": offsets[: len(tokens)],
    }


def chat_logprobs(tokenizer: Any, piece: Piece, start: int = 0) -> Json:
    """Of a chat completion, from the `start`-th id on."""
    content = []
    for i, logprob in zip(piece.ids[start:], piece.logprobs[start:]):
        token = tokenizer.decode([i])
        content.append(
            {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        )
    return {"content": content, "refusal": None}


def call_deltas(calls: Sequence[Mapping[str, Any]]) -> list[Json]:
    """The deltas of calls, one each."""
    return [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(calls)]
