"""Prompts into requests, and one choice of a response as its text grows."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dcore_jax.data.tokenizer import tokenise
from dcore_jax.engines.engine import Request, fan_out
from dcore_jax.player.model import PlayableModel
from dcore_jax.serve.driver import Ticket
from dcore_jax.serve.requests import BadRequest, Wanted
from dcore_jax.serve.text import Detokenizer, find_stop, held_back


class Piece(NamedTuple):
    """A choice so far."""

    text: str  # as far as it is certain: without half a character, or what may become a stop text
    ids: tuple[int, ...]  # without the stop token
    logprobs: tuple[float, ...]
    generated: int  # tokens, with the stop token
    finish_reason: str | None = None  # stop or length at the last piece


def encode(model: PlayableModel, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The ids of a text; of one that is far too long, enough of them to say so."""
    tokenizer = model.template.tokenizer
    (ids,) = tokenise(tokenizer, [text], model.max_length)
    prefix: list[int] = []
    if add_special_tokens and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token)):
        prefix = list(tokenizer("", add_special_tokens=True)["input_ids"])
    return prefix + ids.tolist()


def requests_of(
    prompt: Sequence[int], wanted: Wanted, model: PlayableModel, default_tokens: int = 0
) -> list[Request]:
    """A request for each choice.

    Raises:
      BadRequest: an empty prompt, one that leaves no room, ids outside the vocabulary.
    """
    if not prompt:
        raise BadRequest("the prompt is empty", param="prompt")
    room = model.max_length - len(prompt)
    if room < 1:
        raise BadRequest(
            f"the prompt has {len(prompt):,} tokens or more; with a completion at most {model.max_length:,} fit",
            code="context_length_exceeded",
        )
    for name, ids in (("prompt", prompt), ("stop_token_ids", wanted.sampling.stop_token_ids)):
        if ids and not (min(ids) >= 0 and max(ids) < model.vocab_size):
            raise BadRequest(f"{name} holds ids outside the vocabulary of {model.vocab_size}", param=name)
    tokens = min(wanted.max_tokens or default_tokens or room, room)
    request = Request(tuple(prompt), replace(wanted.sampling, max_tokens=tokens))
    return fan_out(request, wanted.choices) if wanted.choices > 1 else [request]


async def follow(
    ticket: Ticket, tokenizer: Any, wanted: Wanted, *, skip_special_tokens: bool
) -> AsyncIterator[Piece]:
    """A choice as it grows; the last piece has a finish reason. A stop text ends it before the engine does."""
    decoder = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    looked = 0
    longest = max(map(len, wanted.stop), default=0)
    while True:
        progress = await ticket.next()
        sample = progress.sample
        ids = progress.ids if sample is None else sample.content_ids
        text = decoder.add(ids, final=sample is not None)
        at = find_stop(text[looked:], wanted.stop)
        if at >= 0:
            text = text[: looked + at]
            kept = sum(start < len(text) for start in decoder.starts)
            yield Piece(text, ids[:kept], progress.logprobs[:kept], len(progress.ids), "stop")
            return
        looked = max(0, len(text) - longest)
        if sample is not None:
            reason = "stop" if sample.finish_reason == "stop" else "length"
            yield Piece(text, ids, sample.logprobs[: len(ids)], len(sample.ids), reason)
            return
        text = text[: len(text) - held_back(text, wanted.stop)]
        yield Piece(text, ids, progress.logprobs, len(ids))
