"""The parts of a page as HTML: tables, bars, figures, details. Every text is escaped here, and nothing here loads anything."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dcore_jax.report.chart import Chart

COLOURS = 8  # of the style sheet: c0 to c7


class Count(NamedTuple):
    """A share of things counted, shown as a percentage above `part of whole`."""

    part: int
    whole: int

    @property
    def share(self) -> float:
        """From 0 to 1; 0 of nothing is 0."""
        return self.part / self.whole if self.whole else 0.0


def escape(text: Any) -> str:
    """Text as HTML, quotes too."""
    return html.escape(str(text))


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in a box that scrolls by itself where the screen is narrower.

    Args:
      columns: headings; a heading is aligned as its column.
      rows: cells: text, numbers (aligned right, with thousands separated), a `Count`, or None for an empty cell. The first
        cell of a row is its heading.
    """
    numeric = [
        all(isinstance(row[i], int | float | Count | None) for row in rows)
        and any(row[i] is not None for row in rows)
        for i in range(len(columns))
    ]
    head = "".join(f"<th{_aligned(right)}>{escape(name)}</th>" for name, right in zip(columns, numeric))
    body = "\n".join(
        "<tr>"
        + "".join(_cell(cell, heading=i == 0, right=numeric[i]) for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return _scrolling(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>")


def settings(values: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    rows = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in values)
    return _scrolling(f'<table class="settings"><tbody>\n{rows}\n</tbody></table>')


def bars(
    title: str,
    rows: Sequence[tuple[str, int | float, str]],
    *,
    note: str = "",
    longest: int | float | None = None,
) -> str:
    """Horizontal bars as one figure, in HTML so that labels of any script and length are shown.

    Args:
      rows: (label, value, the value as text); a bar's length is its value over `longest`, by default the largest value.
      note: what the values are.
    """
    most = longest if longest is not None else max((value for _, value, _ in rows), default=0.0)
    shown = "\n".join(
        f'<tr><th>{escape(label)}</th><td class="wide">{bar([(value, "", 0)], most)}</td>'
        f'<td class="number">{escape(text)}</td></tr>'
        for label, value, text in rows
    )
    inside = _scrolling(f'<table class="bars"><tbody>\n{shown}\n</tbody></table>')
    return f"<figure>\n{_caption(title, note)}\n{inside}\n</figure>"


def bar(parts: Sequence[tuple[int | float, str, int]], whole: int | float) -> str:
    """A bar of stacked parts: (value, its name for a tooltip, its colour), of a length of `whole`."""
    at, shapes = 0.0, []
    for value, name, colour in parts:
        width = max(0.0, min(100.0, 100 * value / whole)) if whole > 0 else 0.0
        tip = f"<title>{escape(name)}</title>" if name else ""
        shapes.append(
            f'<rect class="c{colour % COLOURS}" x="{at:.2f}" y="0" width="{width:.2f}" height="10">{tip}</rect>'
        )
        at += width
    inside = "".join(shapes)
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{inside}</svg>'
    )


def stacked(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Sequence[Any], Mapping[str, int]]],
    *,
    note: str = "",
) -> str:
    """A table whose last column is a bar of counts by name, below a legend of the names, as one figure.

    Args:
      columns: headings of the cells.
      rows: (cells, counts by name), the names the same in every row and in the same order.
    """
    names = list(rows[0][1]) if rows else []
    head = "".join(f"<th{_aligned(i > 0)}>{escape(name)}</th>" for i, name in enumerate(columns))
    lines = []
    for cells, counts in rows:
        parts = [(count, f"{name}: {count:,}", i) for i, (name, count) in enumerate(counts.items())]
        shown = "".join(_cell(cell, heading=i == 0, right=i > 0) for i, cell in enumerate(cells))
        lines.append(f'<tr>{shown}<td class="wide">{bar(parts, sum(counts.values()))}</td></tr>')
    body = "\n".join(lines)
    inside = _scrolling(
        f"<table>\n<thead><tr>{head}<th>share</th></tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )
    return f"<figure>\n{_caption(title, note)}\n{legend(list(enumerate(names)))}\n{inside}\n</figure>"


def figure(chart: Chart) -> str:
    """A chart with its title and, for several series, a legend."""
    names = [(colour, name) for colour, name in chart.legend if name]
    key = legend(names) if len(names) > 1 else ""
    return f"<figure>\n{_caption(chart.title, chart.note)}\n{key}{chart.svg}\n</figure>"


def legend(names: Sequence[tuple[int, str]]) -> str:
    """Colours and what they stand for."""
    entries = "".join(
        f'<li><span class="swatch c{colour % COLOURS}"></span>{escape(name)}</li>' for colour, name in names
    )
    return f'<ul class="legend">{entries}</ul>\n' if names else ""


def details(summary: str, inside: str) -> str:
    """HTML that is shown when its summary is opened."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{inside}\n</details>"


def preformatted(text: str, kind: str = "", label: str = "") -> str:
    """A text with its line breaks, under a label; `kind` colours it: query, thought, call, response, answer, reply, error."""
    head = paragraph(label, "label") if label else ""
    attribute = f' class="{kind}"' if kind else ""
    return f"{head}<pre{attribute}>{escape(text)}</pre>"


def _caption(title: str, note: str) -> str:
    more = f' <span class="note">({escape(note)})</span>' if note else ""
    return f"<figcaption>{escape(title)}{more}</figcaption>"


def _scrolling(inside: str) -> str:
    return f'<div class="scroll" tabindex="0">{inside}</div>'


def _cell(cell: Any, *, heading: bool, right: bool) -> str:
    if cell is None:
        shown = ""
    elif isinstance(cell, Count):
        shown = f'{100 * cell.share:.1f} %<span class="note">{cell.part:,} of {cell.whole:,}</span>'
    elif isinstance(cell, int):
        shown = f"{cell:,}"
    else:
        shown = escape(f"{cell:,.4g}" if isinstance(cell, float) else cell)
    tag = "th" if heading else "td"
    return f"<{tag}{_aligned(right)}>{shown}</{tag}>"


def _aligned(right: bool) -> str:
    return ' class="number"' if right else ""
