"""A page: a header and sections, as one HTML file that loads nothing and needs no script.

page = Page("RL", "DA-GRPO of Qwen3-8B", facts=run_facts("Qwen/Qwen3-8B", seconds=60.0))
page.section("Curves").figures(line_chart("Reward", [Series("reward", steps, rewards, "smoothed")], y="reward"))
page.section("Held-out tasks").stages({"all": {"base": Count(3, 10), "trained": Count(9, 10)}})
page.write("report.html")
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from dcore_jax.atomic import atomic_path
from dcore_jax.errors import UserError
from dcore_jax.report import blocks
from dcore_jax.report.blocks import Count, escape
from dcore_jax.report.chart import Chart, Curve, Series, Style, line_chart
from dcore_jax.report.trajectory import Turn, pair_html, turns_html

# The browser itself refuses whatever a text from data or from a model might ask it to load.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass
class Section:
    """A section under way; each method appends a block and returns the section. All texts are plain and are escaped."""

    title: str
    blocks: list[str] = field(default_factory=list)

    def add(self, *parts: str) -> "Section":
        """HTML of `blocks.py`, as it is."""
        self.blocks += parts
        return self

    def text(self, text: str, *, note: bool = False) -> "Section":
        """A paragraph; a note is small."""
        return self.add(blocks.paragraph(text, "note" if note else ""))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Section":
        """See `blocks.table`."""
        return self.add(blocks.table(columns, rows))

    def settings(self, values: Sequence[tuple[str, str]], *, summary: str = "") -> "Section":
        """Names and values; behind `summary` where there is one, to be opened."""
        inside = blocks.settings(values)
        return self.add(blocks.details(summary, inside) if summary else inside)

    def bars(
        self,
        title: str,
        rows: Sequence[tuple[str, int | float, str]],
        *,
        note: str = "",
        longest: int | float | None = None,
    ) -> "Section":
        """See `blocks.bars`."""
        return self.add(blocks.bars(title, rows, note=note, longest=longest))

    def figures(self, *charts: Chart | str) -> "Section":
        """Charts, or figures of `blocks.py`, beside each other where the screen is wide enough."""
        shown = [blocks.figure(chart) if isinstance(chart, Chart) else chart for chart in charts]
        return self.add('<div class="figures">', *shown, "</div>") if shown else self

    def curves(self, rows: Sequence[Mapping[str, Any]], curves: Sequence[Curve]) -> "Section":
        """A chart for each metric that has a value other than zero, and a note that names those that have none.

        Args:
          rows: of `metrics.jsonl`, each with a `step`.
        """
        charts, dead = [], []
        for curve in curves:
            found = [(row["step"], float(row[curve.key])) for row in rows if curve.key in row]
            style: Style = "smoothed" if curve.smoothed else "line"
            series = Series(curve.title, [x for x, _ in found], [y for _, y in found], style)
            if series.live:
                charts.append(line_chart(curve.title, [series], y=curve.label, log=curve.log))
            else:
                dead.append(curve.title)
        self.figures(*charts)
        return (
            self.text(f"Zero or absent in every step, not drawn: {'; '.join(dead)}.", note=True)
            if dead
            else self
        )

    def stages(self, groups: Mapping[str, Mapping[str, Count]], *, of: str = "tasks") -> "Section":
        """A table of stages: one column a stage, one row a group of tasks, a `Count` each, and a bar a stage for each group.

        Args:
          groups: by group ("all", "parallel, 3 calls"), counts by stage ("base", "self-distilled"); the first group decides
            the stages and their order.
          of: what is counted.
        """
        names = list(next(iter(groups.values()), {}))
        self.table(
            [of, *names], [[group, *(counts.get(name) for name in names)] for group, counts in groups.items()]
        )
        shown = [
            blocks.bars(
                f"{group}, by stage",
                [(name, c.share, f"{c.share:.1%}") for name in names if (c := counts.get(name))],
                note=f"share of {of}",
                longest=1.0,
            )
            for group, counts in groups.items()
        ]
        return self.figures(*shown)

    def trajectory(self, title: str, turns: Sequence[Turn], *, note: str = "") -> "Section":
        """One trajectory in a box."""
        return self._boxed(title, note, turns_html(turns))

    def compare(
        self,
        title: str,
        query: str,
        before: Sequence[Turn],
        after: Sequence[Turn],
        *,
        names: tuple[str, str] = ("before", "after"),
        verdicts: tuple[str, str] = ("", ""),
        right: tuple[bool | None, bool | None] = (None, None),
        reference: str = "",
        note: str = "",
    ) -> "Section":
        """Two trajectories for the same query, side by side; see `trajectory.pair_html`."""
        head = blocks.preformatted(query, "query", "asked")
        if reference:
            head += blocks.details("reference", blocks.preformatted(reference, "call"))
        both = pair_html(before, after, names=names, verdicts=verdicts, right=right)
        return self._boxed(title, note, f"{head}\n{both}")

    def _boxed(self, title: str, note: str, inside: str) -> "Section":
        more = blocks.paragraph(note, "label") if note else ""
        return self.add(f"<article>\n<h3>{escape(title)}</h3>\n{more}{inside}\n</article>")


@dataclass
class Page:
    """A page under way.

    Args:
      kind: of run, above the title.
      facts: of the header, by name; `command` has a line of its own.
      lead: the result in a sentence.
    """

    kind: str
    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str) -> Section:
        """A new section at the end."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def html(self) -> str:
        """The page."""
        style = resources.files("dcore_jax.report").joinpath("style.css").read_text(encoding="utf-8")
        facts = "\n".join(_fact(name, value) for name, value in self.facts.items())
        sections = "\n".join(
            "\n".join(["<section>", f"<h2>{escape(one.title)}</h2>", *one.blocks, "</section>"])
            for one in self.sections
        )
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(self.title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<p class="kicker">{escape(self.kind)}</p>
<h1>{escape(self.title)}</h1>
{blocks.paragraph(self.lead, "lead") if self.lead else ""}
<dl class="facts">
{facts}
</dl>
</header>
{sections}
</main>
</body>
</html>
"""

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page, as a whole or not at all.

        Raises:
          UserError: the file cannot be written.
        """
        out = Path(path)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(out) as unfinished:
                # Lone surrogates, which JSON can hold, cannot be encoded: they are shown as a question mark.
                unfinished.write_bytes(self.html().encode("utf-8", errors="replace"))
        except OSError as error:
            raise UserError(
                f"{out}: the report cannot be written: {error.strerror}; choose another output"
            ) from error
        return out


def _fact(name: str, value: str) -> str:
    wide = ' class="wide"' if name == "command" else ""
    return f"<div{wide}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
