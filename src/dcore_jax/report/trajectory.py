"""What a model wrote, part by part: thought, calls, what tools answered, words; alone or two side by side."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from dcore_jax.calls import parse_any_response, split_thought
from dcore_jax.report.blocks import escape, preformatted

TurnKind = Literal["query", "thought", "call", "response", "answer", "reply", "error"]
MAX_SHOWN = 4_000  # characters of one text in a page

_LABELS = {"response": "tool response", "error": "not readable"}


class Turn(NamedTuple):
    """A part of a trajectory."""

    kind: TurnKind
    text: str
    label: str = ""  # shown above it; by default the kind's name


def turns_of(text: str) -> tuple[Turn, ...]:
    """The parts of an assistant's turn in their order: thought, calls, words; calls that cannot be read are an error."""
    thought, rest, closed = split_thought(text)
    found = [Turn("thought", thought, "" if closed else "thought, cut off")] if thought else []
    if not closed:
        return tuple(found)
    parsed = parse_any_response(rest)[0]
    at = rest.find(parsed.call_text) if parsed.call_text else -1
    if at < 0:
        pieces = [Turn("answer", rest.strip())]
    else:
        end = at + len(parsed.call_text)
        kind: TurnKind = "error" if parsed.calls is None else "call"
        label = f"not readable: {parsed.error}" if parsed.calls is None and parsed.error else ""
        pieces = [
            Turn("answer", rest[:at].strip()),
            Turn(kind, parsed.call_text, label),
            Turn("answer", rest[end:].strip()),
        ]
    return tuple([*found, *(piece for piece in pieces if piece.text)])


def turns_html(turns: Sequence[Turn]) -> str:
    """The parts under their labels, one coloured block each."""
    return "\n".join(
        preformatted(shorten(turn.text), turn.kind, turn.label or _LABELS.get(turn.kind, turn.kind))
        for turn in turns
    )


def pair_html(
    before: Sequence[Turn],
    after: Sequence[Turn],
    *,
    names: tuple[str, str] = ("before", "after"),
    verdicts: tuple[str, str] = ("", ""),
    right: tuple[bool | None, bool | None] = (None, None),
) -> str:
    """Two trajectories beside each other, one above the other on a phone.

    Args:
      names: of the two sides.
      verdicts: what is said of each, as "right" or "reward 0.5".
      right: whether each is, which colours its verdict; None: not judged.
    """
    sides = []
    for name, verdict, correct, turns in zip(names, verdicts, right, (before, after)):
        kind = "note" if correct is None else "good" if correct else "bad"
        said = f' <span class="{kind}">{escape(verdict)}</span>' if verdict else ""
        inside = turns_html(turns) or preformatted("", label="nothing was written")
        sides.append(f'<div><p class="side">{escape(name)}{said}</p>\n{inside}</div>')
    return "\n".join(['<div class="pair">', *sides, "</div>"])


def shorten(text: str) -> str:
    """The text, or its beginning and the number of characters left out."""
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]} … ({len(text) - MAX_SHOWN:,} more characters)"
