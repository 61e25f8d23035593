"""Records to samples: token ids by the tokenizer's chat template, with a loss mask computed from the ids.

A sample is a conversation with loss on its assistant turns. What is before a turn (as a server would send it to the model) and
the turn are rendered as text, tokenised separately and joined, so the token boundary between them is the same as in inference,
and the mask follows from the numbers of ids; no text is searched. Where the template renders prefix-stably all turns of a record
share one sample; where it does not (turn_texts.py), those of a question do, or each turn has a sample of its own: the ids that
are learned, and those before them, are the same either way.

Two masks (docs/data.md has a worked example of both):

- `last_turn`: loss on assistant turns and their end token, and on nothing else;
- `release`: what the D-CORE release's SFT trainer does (chatml.py): hand-built ChatML, one sample per turn, history turns
  without thinking, loss also on the delimiters of every message, masked assistant content in the denominator.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from dcore_jax.data.chat_template import ChatTemplate, as_chat_template
from dcore_jax.data.chatml import chatml_end_ids, chatml_masks, chatml_turn
from dcore_jax.data.files import Malformed
from dcore_jax.data.left_out import left_out
from dcore_jax.data.records import Message, Record
from dcore_jax.data.tokenizer import tokenise
from dcore_jax.data.turn_texts import TurnText, is_question, one_sequence, questions, single_turn
from dcore_jax.errors import UserError
from dcore_jax.weights.stop_tokens import end_of_turn_ids as end_of_turn_ids  # what the masks end at

Mask = Literal["last_turn", "release"]
MASKS: tuple[Mask, ...] = ("last_turn", "release")
MARKED = "a turn marked not to be trained"
Ids = Int32[np.ndarray, "ids"]
# A record on its way: gives texts, is given their ids, and adds to its `Rendered`.
_Steps = Generator[list[str], list[np.ndarray], None]
# Characters of a conversation that are rendered at first, for each token that fits.
_CHARACTERS = 6


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One rendered conversation, up to the last assistant turn that is learned in it.

    A mask is True at the *predicted* token: position t carries the loss of predicting tokens[t] from tokens[:t].
    Position 0 is never True, since nothing inside the sample predicts it.
    """

    tokens: Int32[np.ndarray, "length"]
    loss_mask: Bool[np.ndarray, "length"]
    denominator_mask: Bool[np.ndarray, "length"]  # tokens in the loss's denominator
    category: str
    origin: str
    turns: int = 1  # assistant turns learned in it
    # Of each token in loss and denominator; None: 1 everywhere.
    weights: Float32[np.ndarray, "length"] | None = None


class Rendered(NamedTuple):
    """The samples of one record, and the reason of each rejected turn."""

    samples: list[TrainingSample]
    rejected: list[str]


def render(record: Record, tokenizer: Any, *, mask: Mask = "last_turn", max_length: int) -> Rendered:
    """The samples of one record, in which every assistant turn is learned once, or only the last (`record.loss_turns`).

    A turn is rejected, with the reason, when it ends after `max_length` tokens (nothing is truncated), when the record marks it
    as not to be trained, when the template raises, does not continue its own prompt, or leaves out what the record says, or
    when the turn is empty or lacks an end token.

    Args:
      tokenizer: a transformers tokenizer with a chat template, or a `ChatTemplate`.

    Raises:
      UserError: the tokenizer cannot render at all (no chat template; for `release`, no ChatML tokens).
    """
    return render_batch([record], tokenizer, mask=mask, max_length=max_length)[0]


def render_batch(
    records: Sequence[Record], tokenizer: Any, *, mask: Mask = "last_turn", max_length: int
) -> list[Rendered]:
    """`render` for many records, with few calls of the tokenizer for all their texts."""
    if mask not in MASKS:
        raise UserError(f"mask must be one of {', '.join(MASKS)}, not {mask!r}")
    template = as_chat_template(tokenizer)
    bare = template.tokenizer
    end_ids = end_of_turn_ids(bare) if mask == "last_turn" else chatml_end_ids(bare)
    renderings = [_Rendering(record, template, end_ids, max_length) for record in records]
    steps = [r.last_turn() if mask == "last_turn" else r.release() for r in renderings]
    asked = {i: texts for i, step in enumerate(steps) if (texts := next(step, None)) is not None}
    while asked:
        ids = iter(tokenise(bare, [text for texts in asked.values() for text in texts], max_length))
        answers = {i: [next(ids) for _ in texts] for i, texts in asked.items()}
        asked = {i: texts for i, answer in answers.items() if (texts := _send(steps[i], answer)) is not None}
    return [rendering.result for rendering in renderings]


def _send(steps: _Steps, ids: list[np.ndarray]) -> list[str] | None:
    try:
        return steps.send(ids)
    except StopIteration:
        return None


@dataclass
class _Rendering:
    """One record's way to samples: generators that ask for the ids of texts, so that many records share a tokenizer call."""

    record: Record
    template: ChatTemplate
    end_ids: frozenset[int]
    max_length: int
    result: Rendered = field(default_factory=lambda: Rendered([], []))

    def __post_init__(self) -> None:
        self.messages: list[Message] = list(self.record.messages)
        self.assistant = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        wanted = self.assistant[-1:] if self.record.loss_turns == "last" else self.assistant
        self.learned = {turn for turn in wanted if self._weight(turn) > 0}
        self.history_too_long = False  # of every turn that is still to come
        self.result.rejected.extend([MARKED] * (len(wanted) - len(self.learned)))

    # --- last_turn ---

    def last_turn(self) -> _Steps:
        """All turns in one sample; where the template does not have that, those of each question; else each turn in its own."""
        if not self.learned:
            return
        first, last = min(self.learned), max(self.learned)
        turns = [turn for turn in self.assistant if first <= turn <= last]
        if len(turns) > 1 and (yield from self._together(turns)):
            return
        groups = questions(self.messages, turns)
        for group in groups:
            together = len(groups) > 1 and len(group) > 1 and not self.history_too_long
            if not (together and (yield from self._together(group))):
                yield from self._one_by_one(group)

    def _together(self, turns: list[int]) -> Generator[list[str], list[np.ndarray], bool]:
        """Adds one sample for these turns, as far as they fit; False, and nothing added, where they are not one sequence."""
        budget = _CHARACTERS * self.max_length
        while True:
            part = self._within(turns, budget)
            pieces = one_sequence(self.template, self.messages, part, self.record.tools)
            if pieces is None:
                return False
            ids = yield [text for piece in pieces for text in (piece.before, piece.text)]
            ends = np.cumsum([len(x) for x in ids])[1::2]
            fitting = int(np.sum(ends <= self.max_length))
            if fitting < len(pieces) or len(part) == len(turns):
                break
            budget *= 4  # there is room for more turns than were rendered
        pieces, ids = pieces[:fitting], ids[: 2 * fitting]
        if fitting > 1:
            # Text is tokenised as a whole at inference: the boundaries between turns must be the same there.
            (whole,) = yield ["".join(piece.before + piece.text for piece in pieces)]
            if not np.array_equal(whole, np.concatenate(ids)):
                return False
        self._add(pieces, ids)
        self._reject_long(turns[fitting:])
        return True

    def _one_by_one(self, turns: list[int]) -> _Steps:
        """Adds a sample for each of these turns of one question."""
        for number, turn in enumerate(turns):
            if turn not in self.learned:
                continue
            if self.history_too_long:
                self._reject_long([turn])
                continue
            try:
                piece = single_turn(self.template, self.messages, turn, self.record.tools)
            except Malformed as reason:
                self.result.rejected.append(str(reason))
                continue
            ids = yield [piece.before, piece.text]
            if sum(map(len, ids)) <= self.max_length:
                self._add([piece], ids)
                continue
            self._reject_long([turn])
            if len(ids[0]) > self.max_length:
                # No later turn of this question fits. A template may drop thoughts at the next question, and nothing else.
                self.history_too_long = turn > 0 and is_question(self.messages[turn - 1])
                self._reject_long(turns[number + 1 :])
                return

    def _within(self, turns: list[int], budget: int) -> list[int]:
        """The turns up to which the conversation has so many characters, and one more."""
        sizes = np.cumsum([characters(message) for message in self.messages])
        return turns[: max(int(np.sum(sizes[turns] <= budget)) + 1, 2)]

    def _add(self, pieces: list[TurnText], ids: list[np.ndarray]) -> None:
        """Adds the sample of a sequence, with a reason for each turn in it that is not learned."""
        starts = np.cumsum([0, *map(len, ids)])
        mask, weights = np.zeros(starts[-1], bool), np.ones(starts[-1], np.float32)
        count, end = 0, 0
        for number, piece in enumerate(pieces):
            if piece.turn not in self.learned:
                continue
            size = self._learned_length(piece, ids[2 * number + 1])
            if isinstance(size, str):
                self.result.rejected.append(size)
                continue
            start = starts[2 * number + 1]
            mask[start : start + size] = True
            weights[start : start + size] = self._weight(piece.turn)
            count, end = count + 1, starts[2 * number + 2]
        mask[:1] = False
        if count:
            tokens = np.concatenate(ids)[:end]
            self._add_sample(tokens, mask[:end], mask[:end], count, weights[:end])

    def _learned_length(self, piece: TurnText, ids: np.ndarray) -> int | str:
        """How many of a turn's ids are learned, up to its end token and with it; or why none are."""
        closing = [at for at, token in enumerate(ids.tolist()) if token in self.end_ids]
        if not closing:
            return "no end-of-turn token after the turn"
        if len(closing) > 1:
            return "an end-of-turn token inside the turn's content"
        if closing[0] == 0:
            return "the template renders the turn as nothing"
        # What a template writes after the end token is not learned.
        text, _, _ = piece.text.partition(
            self.template.tokenizer.convert_ids_to_tokens(int(ids[closing[0]])) or "\x00"
        )
        return left_out(self.messages[piece.turn], text) or closing[0] + 1

    # --- release ---

    def release(self) -> _Steps:
        """The release's samples: one per turn, each message tokenised by itself and once."""
        known: dict[str, np.ndarray] = {}
        for number, turn in enumerate(sorted(self.learned)):
            texts, kinds = chatml_turn(self.messages[: turn + 1], self.record.tools)
            new = [text for text in dict.fromkeys(texts) if text not in known]
            known.update(zip(new, (yield new) if new else []))
            pieces = [known[text] for text in texts]
            if sum(map(len, pieces)) > self.max_length:
                self._reject_long([turn])
                if sum(map(len, pieces[:-3])) > self.max_length:  # without this turn's content and end
                    self._reject_long(sorted(self.learned)[number + 1 :])
                    return
                continue
            if any(
                i in self.end_ids
                for ids, kind in zip(pieces, kinds)
                if kind == "learned"
                for i in ids.tolist()
            ):
                self.result.rejected.append("an end-of-turn token inside the turn's content")
                continue
            loss, denominator = chatml_masks(pieces, kinds)
            learned = np.repeat([kind == "learned" for kind in kinds], [len(ids) for ids in pieces])
            weights = np.where(learned, np.float32(self._weight(turn)), np.float32(1))
            self._add_sample(np.concatenate(pieces), loss, denominator, 1, weights)

    # --- both ---

    def _add_sample(
        self, tokens: Any, loss: np.ndarray, denominator: np.ndarray, turns: int, weights: np.ndarray
    ) -> None:
        self.result.samples.append(
            TrainingSample(
                tokens,
                loss,
                denominator,
                self.record.category,
                self.record.origin,
                turns,
                weights if np.any(weights != 1) else None,
            )
        )

    def _reject_long(self, turns: Sequence[int]) -> None:
        reason = f"longer than {self.max_length} tokens"
        self.result.rejected.extend(reason for turn in turns if turn in self.learned)

    def _weight(self, turn: int) -> float:
        weights = self.record.turn_weights
        return 1.0 if weights is None else weights[turn]


def characters(message: Message) -> int:
    """About how long a message is as text."""
    texts = [message.get("content"), message.get("reasoning_content")]
    calls = message.get("tool_calls") or ()
    return sum(len(text) for text in texts if isinstance(text, str)) + sum(len(str(call)) for call in calls)
