"""Which kind of sample an assistant turn makes: a pure function and its rules.

A turn is what the assistant does between one user message and the next: messages with calls, each answered by
the tools, and perhaps a last message of text. The rules, in order:

1. No tools are offered: no sample.
2. Calls. One message with several calls is `parallel`. Everything else is `sequential`: a single call, one
   call a message, and the mixed chain, in which a message with several calls is followed or preceded by others.
   A mixed chain is read as one call after the other in the order written: calls of one message are independent,
   so any order among them is right, and the calls of later messages may need them. A record that states the kind
   `mixed` keeps its messages: the calls of one are written in one turn.
3. Text after the tools have answered is a `report`.
4. Text without any call that refuses (no tool fits, something is missing) or asks the user for something
   is `irrelevant`, or `missing` where the record states that.
5. Other text without a call is talk (thanks, opinions, general knowledge): no sample, since there is nothing
   that a thought could explain by a missing tool.

Refusals and requests are found by patterns over sentences, in English. A question that only offers more help
("Is there anything else?") is not a request.
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
# A refusal names something that is needed and says that it is absent, in either order.
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
_FIRST_SENTENCES = 3  # in which a refusal is looked for, besides the last


def detect_kind(
    calls: Sequence[int], words: str, *, tools_offered: bool, answered: bool, stated: Kind | None = None
) -> Kind:
    """The kind of a turn, or of its closing text, by the rules above.

    Args:
      calls: the number of calls of each message that calls; empty for text.
      words: the text of the message; it decides only where there are no calls.
      tools_offered: whether the conversation offers any tool.
      answered: whether tools have answered since the last user message.
      stated: the kind that the record itself gives, which wins where it is possible.

    Raises:
      Malformed: the turn makes no sample; with the reason.
    """
    if not tools_offered:
        raise Malformed(NO_TOOLS)
    if stated is not None:
        several = ("parallel",) if sum(calls) > 1 else ()
        mixed = ("mixed",) if len(calls) > 1 and max(calls) > 1 else ()
        wordy = ("report",) if answered else ("irrelevant", "missing")
        possible: tuple[str, ...] = ("sequential", *several, *mixed) if calls else wordy
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
    return any(_refusal(sentence) for sentence in sentences[:_FIRST_SENTENCES] + sentences[-1:])


def asks(words: str) -> bool:
    """Whether the text ends in a question to the user, or requests something anywhere; offers of help do not count."""
    sentences = [sentence for sentence in _sentences(words) if not _OFFER.search(sentence)]
    questions = any(sentence.endswith("?") for sentence in sentences[-2:])
    return questions or any(_follow(sentence, *_REQUEST) for sentence in sentences)


def _refusal(sentence: str) -> bool:
    pairs = ((_ABSENT, _NEEDED), (_NEEDED, _ABSENT), _REQUIRES)
    return _REFUSAL.search(sentence) is not None or any(_follow(sentence, *pair) for pair in pairs)


def _follow(sentence: str, first: re.Pattern[str], second: re.Pattern[str]) -> bool:
    """Whether `second` is found after `first`. One pattern with `.*` between them would take quadratic time."""
    found = first.search(sentence)
    return found is not None and second.search(sentence, found.end()) is not None


def _sentences(words: str) -> list[str]:
    plain = words.replace("’", "'").lower()
    return [sentence for match in _SENTENCE.finditer(plain) if (sentence := match[0].strip())]
