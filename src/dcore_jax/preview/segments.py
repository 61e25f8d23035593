"""A rendered sample as a list of parts: what is masked, what is learned, and what each part is."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dcore_jax.calls import parse_any_response, split_thought
from dcore_jax.data.rendering import TrainingSample

Kind = Literal["context", "thought", "call", "answer", "response", "end"]
KINDS: tuple[Kind, ...] = ("context", "thought", "call", "answer", "response", "end")
_RESPONSE = re.compile(r"<tool_response>.*?</tool_response>", re.DOTALL)


@dataclass(frozen=True)
class Segment:
    """A part of a sample."""

    text: str
    kind: Kind  # response: of a tool; end: the token that ends the turn
    learned: bool
    weight: float = 1.0  # in the loss; of learned parts


def sample_segments(sample: TrainingSample, tokenizer: Any) -> list[Segment]:
    """The parts of a training sample in their order; joined, their texts are the decoded sample."""
    found: list[Segment] = []
    weights = np.ones(len(sample.tokens), np.float32) if sample.weights is None else sample.weights
    changes = np.flatnonzero((np.diff(sample.loss_mask) != 0) | (np.diff(weights) != 0)) + 1
    for start, stop in zip([0, *changes], [*changes, len(sample.tokens)]):
        ids = sample.tokens[start:stop].tolist()
        if not sample.loss_mask[start]:
            found += text_segments(tokenizer.decode(ids), learned=False)
            continue
        weight = float(weights[start])
        end = ids[-1] in tokenizer.all_special_ids or ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids[:-1] if end else ids)
        found += [Segment(s.text, s.kind, True, weight) for s in text_segments(text, learned=True)]
        if end:
            found.append(Segment(tokenizer.decode(ids[-1:]), "end", True, weight))
    return found


def text_segments(text: str, *, learned: bool) -> list[Segment]:
    """The parts of a text: of an assistant turn its thought, calls and words; of a context the tools' responses and the rest."""
    if not learned:
        return _context(text)
    thought, answer, _ = split_thought(text)
    found = []
    if thought is not None:
        found.append(Segment(text[: len(text) - len(answer)], "thought", learned))
    call_text = parse_any_response(answer)[0].call_text
    at = answer.find(call_text) if call_text else -1
    pieces: list[tuple[str, Kind]] = [(answer, "answer")]
    if at >= 0:
        end = at + len(call_text)
        pieces = [(answer[:at], "answer"), (answer[at:end], "call"), (answer[end:], "answer")]
    return found + [Segment(piece, kind, learned) for piece, kind in pieces if piece]


def _context(text: str) -> list[Segment]:
    found, at = [], 0
    for match in _RESPONSE.finditer(text):
        found += [Segment(text[at : match.start()], "context", False), Segment(match[0], "response", False)]
        at = match.end()
    return [segment for segment in (*found, Segment(text[at:], "context", False)) if segment.text]
