"""A preview as text for a terminal, and as one HTML page without any other file."""

import html
from collections.abc import Sequence

from dcore_jax.preview.segments import KINDS, Segment

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
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
body { color: #1d2330; background: #fff; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.55 ui-monospace, monospace; padding: 1rem; }
pre { border: 1px solid #d8dce4; border-radius: 6px; background: #fbfbfd; }
pre.facts { background: none; border: 0; padding: 0; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
.context { color: #767d8c; } .response { color: #7a4a8c; }
.thought { background: #d9f0f7; } .call { background: #ffe3b0; } .answer { background: #d8f3d0; } .end { background: #f6c6c6; }
.legend span { display: inline-block; padding: .1rem .5rem; margin: 0 .5rem .3rem 0; border-radius: 4px; }
@media (prefers-color-scheme: dark) {
  body { background: #14171f; color: #e6e8ee; } pre { background: #1a1e28; border-color: #2c3240; }
  .context { color: #8d95a5; } .response { color: #c79bda; }
  .thought { background: #134454; } .call { background: #5c4310; } .answer { background: #1f4a18; } .end { background: #5f2222; }
}
"""


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
    legend = "".join(f'<span class="{kind}">{html.escape(_TITLES[kind])}</span>' for kind in KINDS)
    blocks = [
        f"<h2>Sample {number}: {html.escape(origin)}</h2>\n<pre>{''.join(map(_span, segments))}</pre>"
        for number, (origin, segments) in enumerate(shown, start=1)
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    parts = [
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>',
        f"<body><h1>{html.escape(title)}</h1>",
        f'<pre class="facts">{html.escape(facts)}</pre>\n<p class="legend">{legend}</p>',
        *blocks,
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _span(segment: Segment) -> str:
    weight = f" (weight {segment.weight:g})" if segment.learned and segment.weight != 1 else ""
    return f'<span class="{segment.kind}" title="{_TITLES[segment.kind]}{weight}">{html.escape(segment.text)}</span>'


def _labelled(segment: Segment) -> str:
    weight = f", weight {segment.weight:g}" if segment.learned and segment.weight != 1 else ""
    lines = segment.text.split("\n")
    head = f"{'learned' if segment.learned else 'masked':<8}{segment.kind + weight:<9}| "
    return "\n".join([head + lines[0], *(" " * 17 + "| " + line for line in lines[1:])])
