"""The one type that every data shape is read into, and the count of what was not."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from dcore_jax.calls import Call, CallFormat
from dcore_jax.calls.bounds import MAX_VALUES, CallSyntaxError, check_text, check_value
from dcore_jax.data.files import Malformed
from dcore_jax.errors import UserError

Message = dict[str, Any]
LossTurns = Literal["every", "last"]


@dataclass(frozen=True)
class Reference:
    """What the assistant's next turn should do, where a record states it instead of holding the turn."""

    calls: tuple[Call, ...]  # empty: no call is expected
    expects_reply: bool | None = None  # whether it also speaks to the user; None: where it makes no call
    call_format: CallFormat | None = None  # the notation it is written in; None: none, a list of objects


@dataclass(frozen=True)
class Record:
    """One conversation, or one prompt with a reference."""

    messages: tuple[
        Message, ...
    ]  # OpenAI-style: `role`, `content`, optionally `tool_calls` with `arguments` as dicts
    tools: (
        tuple[dict[str, Any], ...] | None
    )  # OpenAI function schemas; None where the record has no such field
    category: str
    origin: str  # "file:line" for JSON, "file:row" for Parquet, both counted from 1
    # The assistant turns that become samples; `last` for records whose history is trained on in others (the D-CORE corpora).
    loss_turns: LossTurns = "every"
    turn_weights: tuple[float, ...] | None = (
        None  # in [0, 1], one per message; 0: not trained on; None: all 1
    )
    reference: Reference | None = None  # the messages then wait for the assistant
    shape: str = "messages"  # which of the shapes of docs/data.md the row has
    source: str = field(default="", compare=False)  # the data source as the user named it

    @property
    def learnable(self) -> bool:
        """Whether there is a turn to learn from."""
        return self.reference is None


@dataclass
class Rejections:
    """Rejected records, counted by reason with the first origin of each; `strict` raises at the first one instead."""

    strict: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, origin: str) -> None:
        """Counts one rejection. Raises `UserError`, naming origin and reason, when `strict`."""
        if self.strict:
            raise UserError(
                f"{origin}: {reason}; fix the record, or read without strict to skip and count it"
            )
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, origin)

    @property
    def total(self) -> int:
        """All rejections."""
        return sum(self.counts.values())

    def lines(self, limit: int = 20) -> list[str]:
        """One line per reason, the most frequent first: `12 x no assistant turn (first: train.jsonl:7)`."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        lines = [f"{count} x {reason} (first: {self.examples[reason]})" for reason, count in ordered[:limit]]
        rest = ordered[limit:]
        return lines + ([f"{sum(n for _, n in rest)} x {len(rest)} other reasons"] if rest else [])


def check_texts(values: Iterable[Any], where: str) -> None:
    """Raises `Malformed` for a lone surrogate in any text among the values: no tokenizer can write one."""
    try:
        for value in values:
            if isinstance(value, str):
                check_text(value)
    except CallSyntaxError as error:
        raise Malformed(f"{error.reason} in {where}") from None


def check_values(value: Any, where: str, limit: int = MAX_VALUES) -> None:
    """Raises `Malformed` for values that no call format can hold: not finite, too deep, too many, lone surrogates."""
    try:
        check_value(value, limit)
    except CallSyntaxError as error:
        raise Malformed(f"{where}: {error.reason}") from None
