"""A preview as text for a terminal, and as one HTML page without any other file."""

from collections.abc import Sequence

from dcore_jax.preview.segments import KINDS, Segment
from dcore_jax.report import Page, run_facts
from dcore_jax.report.blocks import escape, preformatted

Shown = Sequence[tuple[str, Sequence[Segment]]]

_ANSI = {"thought": "36", "call": "33", "answer": "32", "response": "35", "end": "31", "context": "90"}
_TITLES = {
    "context": "masked: prompt and template",
    "response": "masked: what a tool answered",
    "thought": "learned: thought",
    "call": "learned: call",
    "answer": "learned: words",
    "end": "learned: end of the turn",
}


def terminal_text(shown: Shown, *, colours: bool) -> str:
    """The samples as text: coloured, or with the name of each part before it."""
    blocks = []
    for number, (origin, segments) in enumerate(shown, start=1):
        lines = [f"--- sample {number}, {origin} ---"]
        if colours:
            lines.append("".join(f"\033[{_ANSI[s.kind]}m{s.text}\033[0m" for s in segments))
        else:
            lines += [_labelled(segment) for segment in segments]
        blocks.append("\n".join(lines))
    if colours and blocks:
        legend = "  ".join(f"\033[{_ANSI[kind]}m{_TITLES[kind]}\033[0m" for kind in KINDS)
        blocks.append(legend)
    return "\n\n".join(blocks)


def html_page(title: str, facts: str, shown: Shown) -> str:
    """The facts and the samples as one page.

    Args:
      title: of the page, such as the data's name.
      facts: the table of counts, as text.
    """
    page = Page("dcore_jax · preview of data", title, run_facts("", began=""))
    legend = "".join(f'<span class="{kind}">{escape(_TITLES[kind])}</span>' for kind in KINDS)
    page.section("What is read").add(preformatted(facts, "facts"))
    page.section("How samples are shown").add(f'<p class="parts">{legend}</p>')
    for number, (origin, segments) in enumerate(shown, start=1):
        page.section(f"Sample {number}: {origin}").add(f"<pre>{''.join(map(_span, segments))}</pre>")
    return page.html()


def _span(segment: Segment) -> str:
    weight = f" (weight {segment.weight:g})" if segment.learned and segment.weight != 1 else ""
    return (
        f'<span class="{segment.kind}" title="{_TITLES[segment.kind]}{weight}">{escape(segment.text)}</span>'
    )


def _labelled(segment: Segment) -> str:
    weight = f", weight {segment.weight:g}" if segment.learned and segment.weight != 1 else ""
    lines = segment.text.split("\n")
    head = f"{'learned' if segment.learned else 'masked':<8}{segment.kind + weight:<9}| "
    return "\n".join([head + lines[0], *(" " * 17 + "| " + line for line in lines[1:])])
