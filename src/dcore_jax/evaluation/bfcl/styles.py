"""How a model writes its calls: which decoder of the benchmark reads its stored answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["auto", "prompt", "fc"]


@dataclass(frozen=True)
class Style:
    """The format of a model's answers.

    Args:
      kind: `prompt`: Python calls in text; `tags`: Qwen's `<tool_call>` blocks in text; `calls`: lists of `{name: arguments}`, as
        the benchmark stores what an API returned.
      underscores: function names hold `_` where the benchmark's hold `.`, since an API refuses dots.
      reason: how this was found.
    """

    kind: Literal["prompt", "tags", "calls"]
    underscores: bool = False
    reason: str = ""

    def request(self) -> dict[str, Any]:
        """What the worker needs of it."""
        return {"kind": self.kind, "underscores": self.underscores}

    def __str__(self) -> str:
        dots = ", dots as underscores" if self.underscores else ""
        return f"{self.kind}{dots} ({self.reason})"


def style_of(
    results: Iterable[Any],
    known: Mapping[str, Any] | None,
    mode: Mode = "auto",
    dotted_names: Iterable[str] = (),
) -> Style:
    """The style of a model, from its answers and from what the benchmark's list of models says of its name.

    Args:
      results: stored results of all categories.
      known: `Client.ask("model", ...)`; None for a name that the list does not have.
      mode: what the user says: `prompt`, `fc`, or `auto`.
      dotted_names: names of the benchmark's functions that hold a dot.
    """
    calls, texts = _parts(results)
    listed = bool(known and known["function_calling"])
    if mode == "prompt":
        return Style("prompt", reason="as asked for")
    if calls:
        if known:
            return Style(
                "calls",
                known["underscores"],
                f"lists of calls; names as the benchmark has them for {known['name']}",
            )
        return _calls_style(calls, dotted_names)
    if mode == "fc" or listed:
        return Style(
            "tags",
            reason="as asked for"
            if mode == "fc"
            else f"the benchmark lists {known['name']}"
            if known
            else "",
        )
    tagged = sum("<tool_call>" in text for text in texts)
    bracketed = sum(text.strip("`\n ").startswith("[") for text in texts)
    if tagged > bracketed and not known:
        return Style(
            "tags",
            reason=f"{tagged:,} of {len(texts):,} texts hold <tool_call>, {bracketed:,} begin with a bracket",
        )
    return Style(
        "prompt",
        reason=f"{bracketed:,} of {len(texts):,} texts begin with a bracket, {tagged:,} hold <tool_call>",
    )


def _calls_style(calls: Iterable[Mapping[str, Any]], dotted_names: Iterable[str]) -> Style:
    """Dots or underscores: as most calls of functions whose names hold dots are written; underscores where there is none."""
    dotted = set(dotted_names)
    renamed = {name.replace(".", "_") for name in dotted}
    names = [name for call in calls for name in call]
    with_dots = sum(name in dotted for name in names)
    without = sum(name in renamed for name in names)
    reason = (
        f"lists of calls; of functions with dots {with_dots:,} are called so, {without:,} with underscores"
    )
    return Style("calls", without >= with_dots, reason)


def _parts(results: Iterable[Any]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Calls that are stored as objects, and texts, at any depth of turns and steps."""
    calls: list[Mapping[str, Any]] = []
    texts: list[str] = []
    pending = list(results)
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            calls.append(part)
        elif isinstance(part, list):
            pending += part
    return calls, texts
