"""The four behaviours of D-CORE's Figure 3a, told apart sentence by sentence.

The paper names decomposition, reflection, verification and deduction. Here a written rule tells them apart, so that anyone counts
the same: a sentence is of the first behaviour, in this order, of which it holds a cue.

| behaviour | cues |
|---|---|
| reflection | wait, but, alternatively, however (the words of lazy reasoning), hmm, on second thought |
| verification | check, verify, confirm, make sure, ensure, double-check, re-read, is this right, looks correct |
| decomposition | an item of a list; first, second, then, next, finally, step, subtask, break down, each of the, two calls |
| deduction | every other sentence: what is stated or concluded |
"""

import re
from collections import Counter
from typing import Literal, get_args

from dcore_jax.rewards import REFLECTION_WORDS

Behaviour = Literal["reflection", "verification", "decomposition", "deduction"]
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)

# An end of a sentence is followed by a space or a line's end: neither `3.5` nor `os.path` holds one.
_SENTENCES = re.compile(r"[^.!?\n]+(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?]*")
_LIST_ITEM = re.compile(r"\s*(?:\d{1,2}[.)]|[-*])\s*$|\s*(?:\d{1,2}[.)]|[-*])\s")


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)


_CUES: tuple[tuple[Behaviour, re.Pattern[str]], ...] = (
    ("reflection", _words(*REFLECTION_WORDS, "hmm+", "on second thought", "actually")),
    (
        "verification",
        _words(
            r"(?:double[- ])?check(?:ing|ed|s)?", r"verif(?:y|ies|ied|ying)", r"confirm(?:s|ed|ing)?", "make sure", "ensure",
            r"re-?read", r"is (?:this|that|it) (?:right|correct)", r"looks? (?:right|correct|good)", r"seems? (?:right|correct)",
        ),
    ),
    (
        "decomposition",
        _words(
            "first(?:ly)?", "second(?:ly)?", "third(?:ly)?", "then", "next", "finally", "lastly", r"steps?", r"sub-?tasks?",
            r"break(?:ing)? (?:it |this |that |them )?down", "each of the", "one by one", r"separate(?:ly)?",
            r"(?:two|three|four|several|multiple) (?:\w+ )?(?:calls|requests|tasks|parts|questions|things)",
        ),
    ),
)  # fmt: skip


def behaviour_of(sentence: str) -> Behaviour:
    """The behaviour of one sentence."""
    for behaviour, cue in _CUES:
        if cue.search(sentence) or (behaviour == "decomposition" and _LIST_ITEM.match(sentence)):
            return behaviour
    return "deduction"


def count_behaviours(thought: str) -> Counter[Behaviour]:
    """Sentences of a thought by behaviour."""
    sentences = (match.group() for match in _SENTENCES.finditer(thought))
    return Counter(behaviour_of(sentence) for sentence in sentences if any(c.isalnum() for c in sentence))
