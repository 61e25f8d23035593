"""Which kind of sample an assistant turn makes: a pure function, and its rules.

A turn is what the assistant does between one user message and the next: messages with calls, each answered by
the tools, and perhaps a last message of words. The rules, in order:

1. No tools are offered: no sample.
2. Calls. One message with several calls is `parallel`. Everything else is `sequential`: a single call, one
   call a message, and the mixed chain, in which a message with several calls is followed or preceded by others.
   A mixed chain is read as one call after the other in the order written: calls of one message do not need
   one another, so any order among them is right, and the calls of later messages may need them.
3. Words after the tools have answered are a `report`.
4. Words without any call, which refuse (no tool fits, something is missing) or ask the user for something,
   are `irrelevant`.
5. Other words without a call are talk (thanks, opinions, general knowledge): no sample, since a thought that
   explains why no tool fits would explain nothing.

Refusing and asking are found by patterns over sentences, in English. A question that only offers more help
("Is there anything else?") does not ask.
"""

import re
from collections.abc import Sequence

from dcore_jax.data.files import Malformed
from dcore_jax.distill.sample import Kind

NO_TOOLS = "no tools are offered"
TALK = "words without a call that neither refuse nor ask"
MISFIT = "a kind that does not fit the turn"
EMPTY = "a turn without words or calls"

_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?\n]*")
_OFFER = re.compile(
    r"\b(anything else|further (help|assistance|questions?)|(any|other|more|additional) (other |more )?questions?"
    r"|let me know if|feel free|would you like|shall i|do you want me|if you (need|have|want)|happy to help)\b"
)
_REQUEST = (
    re.compile(r"\b(please|kindly|could you|can you|may i|i need you to|you need to)\b"),
    re.compile(
        r"\b(provide|specify|tell|share|clarify|confirm|give|supply|indicate|enter|send|have|know|choose|select|name)\b"
    ),
)
# What a refusal says is not there, and that it is not there, in either order.
_ABSENT = re.compile(
    r"\b(no|not|none|nor|neither|cannot|can't|couldn't|doesn't|don't|isn't|aren't"
    r"|unable|lack\w*|missing|without|insufficient)\b"
)
_NEEDED = re.compile(
    r"\b(functions?|tools?|apis?|parameters?|arguments?|capabilit\w+|information|access|ability)\b"
)
_REQUIRES = (re.compile(r"\brequires? the\b"), re.compile(r"\bparameters?\b"))
_REFUSAL = re.compile(
    r"\b(i am|i'm|we are|we're) (sorry|afraid|unable|not able)\b|\b(i|we) (cannot|can't|can not|could not|couldn't)\b"
    r"|\b(cannot|can't|can not) be (used|fulfilled|done|completed|answered|processed|called)\b"
)
_OPENING = 3  # sentences in which a refusal says so


def detect_kind(
    calls: Sequence[int], words: str, *, tools_offered: bool, answered: bool, stated: Kind | None = None
) -> Kind:
    """The kind of a turn, or of its closing words. See the rules above.

    Args:
      calls: the number of calls of each message that calls; empty for words.
      words: the text of the message; it decides only where there are no calls.
      tools_offered: whether the conversation offers any tool.
      answered: whether tools have answered since the user last spoke.
      stated: the kind that the record itself gives, which wins where it is possible.

    Raises `Malformed` with the reason when the turn makes no sample.
    """
    if not tools_offered:
        raise Malformed(NO_TOOLS)
    if stated is not None:
        several = ("parallel",) if sum(calls) > 1 else ()
        possible = ("sequential", *several) if calls else ("report",) if answered else ("irrelevant",)
        if stated not in possible:
            raise Malformed(MISFIT)
        return stated
    if calls:
        return "parallel" if len(calls) == 1 and calls[0] > 1 else "sequential"
    if not words.strip():
        raise Malformed(EMPTY)
    if answered:
        return "report"
    if refuses(words) or asks(words):
        return "irrelevant"
    raise Malformed(TALK)


def refuses(words: str) -> bool:
    """Whether the first sentences, or the last, say that the request cannot be served."""
    sentences = _sentences(words)
    return any(_refusal(sentence) for sentence in sentences[:_OPENING] + sentences[-1:])


def asks(words: str) -> bool:
    """Whether the words end in a question to the user, or request something anywhere, offers of help aside."""
    sentences = [sentence for sentence in _sentences(words) if not _OFFER.search(sentence)]
    questions = any(sentence.endswith("?") for sentence in sentences[-2:])
    return questions or any(_follow(sentence, *_REQUEST) for sentence in sentences)


def _refusal(sentence: str) -> bool:
    pairs = ((_ABSENT, _NEEDED), (_NEEDED, _ABSENT), _REQUIRES)
    return _REFUSAL.search(sentence) is not None or any(_follow(sentence, *pair) for pair in pairs)


def _follow(sentence: str, first: re.Pattern[str], second: re.Pattern[str]) -> bool:
    """Whether `second` is found behind `first`; one pattern with `.*` between them takes quadratic time."""
    found = first.search(sentence)
    return found is not None and second.search(sentence, found.end()) is not None


def _sentences(words: str) -> list[str]:
    plain = words.replace("’", "'").lower()
    return [sentence for match in _SENTENCE.finditer(plain) if (sentence := match[0].strip())]
