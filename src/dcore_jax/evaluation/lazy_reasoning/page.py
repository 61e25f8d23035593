"""The page of `dcore lazy`, and what a terminal shows."""

from dcore_jax.evaluation.lazy_reasoning.behaviours import BEHAVIOURS
from dcore_jax.evaluation.lazy_reasoning.measure import (
    PUBLISHED,
    LazyReport,
    Measured,
    behaviour_shares,
    lazy_of,
)
from dcore_jax.report import Count, Page, density_chart, run_facts, shorten

_SHOWN = 10  # lazy thoughts on the page
_RULES = {
    "release": "more than 200 tokens, at least 3 reflections counted as substrings, and a wrong answer",
    "paper": "more than 300 tokens and more than 3 reflections counted as whole words",
}


def lazy_page(report: LazyReport) -> Page:
    """Ratios, behaviours, densities, and the first lazy thoughts."""
    every = lazy_of([one for found in report.categories.values() for one in found])
    page = Page(
        "dcore_jax · lazy reasoning",
        f"Lazy reasoning of {report.model}",
        run_facts(report.model, further={"thoughts": f"{every.whole:,}", "rule": report.rule}),
        f"{every.part:,} of {every.whole:,} thoughts are lazy: {_RULES[report.rule]}.",
    )
    page.section("Ratios").stages(
        {name: {report.model: lazy_of(f)} for name, f in report.groups.items()}, of="thoughts"
    )
    if any(name in row for row in PUBLISHED.values() for name in report.groups):
        rows = [[model, *(row.get(name) for name in report.groups)] for model, row in PUBLISHED.items()]
        page.section("Published (percent)").table(["model", *report.groups], rows)
    page.section("Categories").table(
        ["category", "lazy", "mean tokens", "mean reflections"],
        [
            [
                name,
                lazy_of(found),
                _mean([one.tokens for one in found]),
                _mean([one.reflections for one in found]),
            ]
            for name, found in report.categories.items()
        ],
    )
    page.section("Behaviours").table(
        ["group", *BEHAVIOURS],
        [
            [name, *(f"{share:.1%}" for share in behaviour_shares(f).values())]
            for name, f in report.groups.items()
        ],
    ).text("Shares of sentences, by the rule in docs/evaluation.md.", note=True)
    densities = page.section("Length and reflection, right and wrong answers")
    for name, found in report.groups.items():
        densities.figures(
            density_chart(f"{name}: length", _by_outcome(found, "tokens"), x="tokens", y="share"),
            density_chart(
                f"{name}: reflections", _by_outcome(found, "reflections"), x="reflections", y="share"
            ),
        )
    lazy = [one for found in report.groups.values() for one in found if one.lazy]
    if lazy:
        section = page.section("Lazy thoughts")
        section.text(f"The first {min(_SHOWN, len(lazy))} of {len(lazy):,}.", note=True)
        section.table(
            ["item", "tokens", "reflections", "begins"],
            [
                [one.thought.id, one.tokens, one.reflections, shorten(one.thought.text)]
                for one in lazy[:_SHOWN]
            ],
        )
    if report.notes:
        page.section("Damaged or left out").table(["what"], [[note] for note in report.notes])
    return page


def lazy_text(report: LazyReport) -> str:
    """The table that a terminal shows."""
    width = max((len(name) for name in report.groups), default=0)
    lines = [f"lazy thoughts of {report.model}, {report.rule}'s rule ({_RULES[report.rule]}):"]
    for name in report.groups:
        count: Count = report.ratio(name)
        lines.append(f"{name:<{width}}  {count.share:>7.2%}  {count.part:>6,} of {count.whole:,}")
    lines += [f"note: {note}" for note in report.notes[:10]]
    if len(report.notes) > 10:
        lines.append(f"... {len(report.notes) - 10} more in summary.json")
    return "\n".join(lines)


def _by_outcome(found: tuple[Measured, ...], field: str) -> dict[str, list[float]]:
    return {
        label: [float(getattr(one, field)) for one in found if one.thought.correct is outcome]
        for label, outcome in (("right", True), ("wrong", False))
    }


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else 0.0
