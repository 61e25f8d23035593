"""Text of ids while they are sampled: decoding piece by piece, stop texts, and what of a turn may be shown already."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dcore_jax.calls.thought import CLOSE_THOUGHT, OPEN_THOUGHT

_UNFINISHED = "\ufffd"  # what the bytes of a character decode to that is not whole yet
_CONTEXT = 6  # ids decoded again before new ones: a text depends on its neighbours


class Detokenizer:
    """Decodes a growing list of ids; every id is decoded a few times and not once for each look."""

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._done = 0  # ids whose text is in `text`
        self.text = ""
        self.starts: list[int] = []  # in the text, of each id

    def add(self, ids: Sequence[int], *, final: bool = False) -> str:
        """The text of all `ids`, which begin with those of the call before. Half a character waits for its other half."""
        while self._done < len(ids):
            start = max(0, self._done - _CONTEXT)
            before = self._decode(ids[start : self._done])
            # The fewest ids that end in a whole character; at the end whatever is left.
            for end in range(self._done + 1, len(ids) + 1):
                after = self._decode(ids[start:end])
                if not after.endswith(_UNFINISHED) and after.startswith(before):
                    break
            else:
                if not final:
                    return self.text
                end, after = len(ids), self._decode(ids[start:])
                if not after.startswith(before):
                    before, self.text = "", self._decode(ids[:start])
            self.starts += [len(self.text)] * (end - self._done)
            self.text += after[len(before) :]
            self._done = end
        return self.text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=self._skip))


def find_stop(text: str, stops: Sequence[str]) -> int:
    """Where the first stop text begins; -1 where there is none."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found, default=-1)


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end could be the beginning of one of the marks."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0


class Shown(NamedTuple):
    """What of an unfinished turn is certain: both texts only ever grow."""

    thought: str
    content: str


def shown(text: str, *, tools: bool) -> Shown:
    """What of a turn's beginning may be sent: the thought, and the answer up to where calls may begin."""
    body = text.lstrip()
    thought, answer = "", text
    if OPEN_THOUGHT.startswith(body[: len(OPEN_THOUGHT)]):
        if len(body) < len(OPEN_THOUGHT):
            return Shown("", "")
        inside, closed, answer = body[len(OPEN_THOUGHT) :].partition(CLOSE_THOUGHT)
        thought = inside.lstrip()
        thought = (
            thought.rstrip()
            if closed
            else thought[: len(thought) - held_back(thought, [CLOSE_THOUGHT])].rstrip()
        )
        if not closed:
            return Shown(thought, "")
    answer = answer.lstrip()
    if tools:
        if answer[:1] in ("[", "{"):
            return Shown(thought, "")
        at = min((i for mark in _CALL_MARKS if (i := answer.find(mark)) >= 0), default=len(answer))
        answer = answer[:at]
        answer = answer[: len(answer) - held_back(answer, _CALL_MARKS)]
    return Shown(thought, answer.rstrip())


_CALL_MARKS = ("<tool_call>", "<response>", "<|python_tag|>", "[TOOL_CALLS]", "```")
