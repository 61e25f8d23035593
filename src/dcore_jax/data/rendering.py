"""Records to samples: token ids by the tokenizer's chat template, with a loss mask computed from the ids.

A sample is the conversation up to one assistant turn. The prompt (as a server would send it to the model) and the
turn are rendered as text, tokenised separately and joined, so the token boundary between them is the same as in
inference, and the mask follows from the numbers of ids; no text is searched.

Two masks (docs/data.md has a worked example of both):

- `last_turn`: loss on the final assistant turn's content and its end token, and on nothing else;
- `release`: what the D-CORE release's SFT trainer does (chatml.py): hand-built ChatML, history turns without
  thinking, loss also on the delimiters of every message, masked assistant content in the denominator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from dcore_jax.data.chat_template import render_chat
from dcore_jax.data.chatml import Pieces, chatml_end_ids, chatml_masks, chatml_turn
from dcore_jax.data.files import Malformed
from dcore_jax.data.records import Message, Record
from dcore_jax.errors import UserError
from dcore_jax.weights.stop_tokens import end_of_turn_ids as end_of_turn_ids  # what the masks end at

Mask = Literal["last_turn", "release"]
MASKS: tuple[Mask, ...] = ("last_turn", "release")


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One rendered conversation up to an assistant turn.

    A mask is True at the *predicted* token: position t carries the loss of predicting tokens[t] from tokens[:t].
    Position 0 is never True, since nothing inside the sample predicts it.
    """

    tokens: Int32[np.ndarray, "length"]
    loss_mask: Bool[np.ndarray, "length"]
    denominator_mask: Bool[np.ndarray, "length"]  # tokens in the loss's denominator
    category: str
    origin: str


class Rendered(NamedTuple):
    """The samples of one record, and the reason of each rejected turn."""

    samples: list[TrainingSample]
    rejected: list[str]


def render(record: Record, tokenizer: Any, *, mask: Mask = "last_turn", max_length: int) -> Rendered:
    """The samples of one record: one per assistant turn, or only the last (`record.loss_turns`).

    A turn is rejected, with the reason, when its sample is longer than `max_length` tokens (it is never truncated), when
    the template raises or does not continue its own prompt, or when the turn is empty or lacks an end token.

    Raises:
      UserError: the tokenizer cannot render at all (no chat template; for `release`, no ChatML tokens).
    """
    return render_batch([record], tokenizer, mask=mask, max_length=max_length)[0]


def render_batch(
    records: Sequence[Record], tokenizer: Any, *, mask: Mask = "last_turn", max_length: int
) -> list[Rendered]:
    """`render` for many records, with one tokenizer call for all their texts."""
    if mask not in MASKS:
        raise UserError(f"mask must be one of {', '.join(MASKS)}, not {mask!r}")
    end_ids = end_of_turn_ids(tokenizer) if mask == "last_turn" else chatml_end_ids(tokenizer)
    plans = [_plan(record, tokenizer, mask) for record in records]
    texts = dict.fromkeys(
        text for plan in plans for turn in plan if isinstance(turn, Pieces) for text in turn.texts
    )
    ids = dict(zip(texts, _tokenise(tokenizer, list(texts))))

    results = []
    for record, plan in zip(records, plans):
        result = Rendered([], [])
        for turn in plan:
            sample = turn if isinstance(turn, str) else _sample(record, turn, ids, end_ids, mask, max_length)
            if isinstance(sample, str):
                result.rejected.append(sample)
            else:
                result.samples.append(sample)
        results.append(result)
    return results


# --- the texts of every turn to learn ---


def _plan(record: Record, tokenizer: Any, mask: Mask) -> list[Pieces | str]:
    """The pieces of each assistant turn to learn, or the reason why it has none."""
    messages = list(record.messages)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if record.loss_turns == "last":
        turns = turns[-1:]
    if mask == "release":
        return [chatml_turn(messages[: turn + 1], record.tools) for turn in turns]
    return [_templated_turn(tokenizer, messages, turn, record.tools) for turn in turns]


def _templated_turn(
    tokenizer: Any, messages: list[Message], turn: int, tools: tuple[dict[str, Any], ...] | None
) -> Pieces | str:
    try:
        prompt = render_chat(tokenizer, messages[:turn], tools, add_generation_prompt=True)
        whole = render_chat(tokenizer, messages[: turn + 1], tools)
    except Malformed as reason:
        return str(reason)
    if not whole.startswith(prompt):
        return "template not prefix-stable (the turn does not continue its own prompt)"
    return Pieces([prompt, whole[len(prompt) :]], ["prompt", "turn"])


# --- ids and masks ---


def _tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    # The texts already hold their special tokens; the tokenizer must add none.
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _sample(
    record: Record,
    turn: Pieces,
    ids: dict[str, list[int]],
    end_ids: frozenset[int],
    mask: Mask,
    max_length: int,
) -> TrainingSample | str:
    """The sample of a turn, or the reason why it gives none."""
    pieces = [ids[text] for text in turn.texts]
    length = sum(map(len, pieces))
    if length > max_length:
        return f"longer than {max_length} tokens"
    if mask == "last_turn":
        turn_mask = _last_turn_mask(pieces[0], pieces[1], end_ids)
        if isinstance(turn_mask, str):
            return turn_mask
        loss = denominator = turn_mask
    else:
        if any(i in end_ids for piece, kind in zip(pieces, turn.kinds) if kind == "learned" for i in piece):
            return "an end-of-turn token inside the turn's content"
        loss, denominator = chatml_masks(pieces, turn.kinds)
    tokens = np.concatenate([np.asarray(piece, np.int32) for piece in pieces])
    return TrainingSample(tokens, loss, denominator, record.category, record.origin)


def _last_turn_mask(prompt: list[int], turn: list[int], end_ids: frozenset[int]) -> np.ndarray | str:
    """True on the turn's ids up to and including its end token, or the reason why there is no such mask."""
    closing = [at for at, token in enumerate(turn) if token in end_ids]
    if not closing:
        return "no end-of-turn token after the turn"
    if len(closing) > 1:
        return "an end-of-turn token inside the turn's content"
    if closing[0] == 0:
        return "the template renders the turn as nothing"
    mask = np.zeros(len(prompt) + len(turn), bool)
    mask[len(prompt) : len(prompt) + closing[0] + 1] = (
        True  # what a template writes after the end token is not learned
    )
    mask[:1] = False
    return mask
