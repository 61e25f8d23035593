"""Reports of a distillation run: report.html (one file that needs no network), a table for the terminal, Table 6."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from dcore_jax.atomic import atomic_path
from dcore_jax.data.records import Rejections
from dcore_jax.distill.report_samples import accepted_view, rejected_view, shorten
from dcore_jax.distill.sample import Outcome
from dcore_jax.distill.tally import STAGES, LengthHistogram, OutcomeCounts, Summary, summarise
from dcore_jax.errors import UserError

PUBLISHED_SAMPLES_PER_SECOND = 0.44  # 40,000 samples in 25 h on one A100 with the 8B model (D-CORE, appendix)
PUBLISHED_TABLE6 = {  # decompositions that succeeded with Qwen3-8B, in per cent
    "no reference": 73.8,
    "reference": 89.1,
    "reference + few-shot": 93.2,
    "pseudo-labels": 92.8,
}
_SHOWN_REASONS = 60


class Table6Row(NamedTuple):
    """One way of decomposing the same seeds."""

    mode: str
    samples: int
    decomposed: int  # passed the count check
    accepted: int


def write_report(
    outcomes: Iterable[Outcome],
    out: str | os.PathLike[str],
    *,
    seconds: float,
    config: Mapping[str, Any],
    rejected_seeds: Rejections,
) -> Summary:
    """Writes the page of a run to `out` and returns the counts.

    Outcomes are taken one at a time; ten accepted ones and a few of each reason are kept. Text from data or from a
    model is escaped, and the page loads nothing. The file is written as a whole or not at all.

    Args:
      seconds: wall time of the run, over all its starts.
      config: the run's settings, for the page.
      rejected_seeds: seeds that made no sample, for the page.

    Raises:
      UserError: the file cannot be written.
    """
    summary = summarise(outcomes)
    reasons = summary.ordered_reasons()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dcore_jax.distill", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        stages=summary.stages(),
        funnel=_funnel(summary),
        groups=[("kind", summary.by_kind), ("source", summary.by_source)],
        reasons=reasons[:_SHOWN_REASONS],
        unshown=sum(count for _, count in reasons[_SHOWN_REASONS:]),
        example=rejected_view,
        histograms=_histograms(summary),
        cost=_cost(summary, seconds),
        tokens=_tokens(summary),
        rejected_seeds=rejected_seeds,
        settings=_flat(config),
        trajectories=[accepted_view(outcome) for outcome in summary.trajectories.outcomes()],
    )
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as unfinished:
            # Lone surrogates, which JSON can hold, cannot be encoded: they are shown as a question mark.
            unfinished.write_bytes(page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(
            f"{path}: the report cannot be written: {error.strerror}; choose another output"
        ) from error
    return summary


def summary_table(summary: Summary, *, seconds: float = 0.0, reasons: int = 10) -> str:
    """The counts as text: one line per kind and source with rejections by stage, then the most frequent reasons."""
    stages = summary.stages()
    width = max([len(name) for name in (*summary.by_kind, *summary.by_source, "samples")])
    head = f"{'':{width}} {'samples':>9} {'accepted':>9} {'':>7}" + "".join(
        f" {stage:>9}" for stage in stages
    )
    lines = [head, _line("all", summary.overall, width, stages)]
    for groups in (summary.by_kind, summary.by_source):
        lines += [_line(name, groups[name], width, stages) for name in sorted(groups)]
    ordered = summary.ordered_reasons()
    for reason, count in ordered[:reasons]:
        lines.append(f"rejected: {count:,} x {reason.stage}: {reason.text}")
    if rest := ordered[reasons:]:
        lines.append(
            f"rejected: {sum(count for _, count in rest):,} for {len(rest)} other reasons, in the report"
        )
    tokens = (
        f"{summary.prompt_tokens.total():,} prompt and {summary.generated_tokens.total():,} generated tokens"
    )
    lines.append(f"records {summary.records:,}; {tokens}; {_rate(summary, seconds)}")
    return "\n".join(lines)


def table6(rows: Sequence[Table6Row]) -> str:
    """The paper's Table 6 for these rows, in Markdown: decompositions that passed the count check, and verified samples."""
    lines = [
        "| decomposition | samples | decomposed | verified | published (Qwen3-8B) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        published = PUBLISHED_TABLE6.get(row.mode)
        lines.append(
            f"| {row.mode} | {row.samples:,} | {_share(row.decomposed, row.samples)} | "
            f"{_share(row.accepted, row.samples)} | {'' if published is None else f'{published} %'} |"
        )
    return "\n".join(lines)


def _line(name: str, counts: OutcomeCounts, width: int, stages: Sequence[str]) -> str:
    rejected = "".join(f" {counts.by_stage[stage]:>9,}" for stage in stages)
    return f"{name:{width}} {counts.samples:>9,} {counts.accepted:>9,} {100 * counts.rate:>5.1f} %{rejected}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _rate(summary: Summary, seconds: float) -> str:
    if seconds <= 0:
        return "time not measured"
    return f"{seconds / 3600:.2f} h, {summary.overall.samples / seconds:.2f} samples/s"


def _funnel(summary: Summary) -> list[tuple[str, int, int, float]]:
    """For each stage: `(stage, samples that reached it, rejected there, share of all that passed it)`."""
    samples = summary.overall.samples
    rows = []
    reached = samples
    for stage in STAGES:
        passed = summary.passed(stage)
        rows.append((stage, reached, reached - passed, passed / samples if samples else 0.0))
        reached = passed
    return rows


def _histograms(summary: Summary) -> list[dict[str, Any]]:
    lengths = [
        ("Composed turn, characters", summary.turn_characters),
        ("Thought in it, characters", summary.thought_characters),
        ("Generated for a sample, tokens", summary.tokens_per_sample),
    ]
    charts = [_length_chart(title, found) for title, found in lengths if found.count]
    if summary.subtasks:
        bars = [(str(number), summary.subtasks[number]) for number in sorted(summary.subtasks)]
        charts.append({"title": "Subtasks of an accepted sample", "note": "", "bars": bars})
    if len(summary.attempts) > 1:
        bars = [(str(number), summary.attempts[number]) for number in sorted(summary.attempts)]
        charts.append({"title": "Attempts at a sample", "note": "", "bars": bars})
    return charts


def _length_chart(title: str, lengths: LengthHistogram) -> dict[str, Any]:
    bars = [
        (f"{(1 << b) >> 1:,}" + (f" to {(1 << b) - 1:,}" if b > 1 else ""), lengths.bins[b])
        for b in range(min(lengths.bins), max(lengths.bins) + 1)
    ]
    note = f"mean {lengths.mean:,.0f}, longest {lengths.longest:,}"
    return {"title": title, "note": note, "bars": bars}


def _cost(summary: Summary, seconds: float) -> list[tuple[str, str]]:
    generated, accepted = summary.generated_tokens.total(), summary.overall.accepted
    rows = [
        ("wall time", f"{seconds / 3600:.2f} h ({seconds:,.0f} s)"),
        ("prompt tokens", f"{summary.prompt_tokens.total():,}"),
        ("generated tokens", f"{generated:,}"),
        ("generated tokens for an accepted sample", f"{generated / accepted:,.0f}" if accepted else "-"),
    ]
    if seconds > 0:
        rate = summary.overall.samples / seconds
        rows.append(
            (
                "samples/s",
                f"{rate:,.2f} (published: {PUBLISHED_SAMPLES_PER_SECOND} with 8B on one A100 80 GB)",
            )
        )
        rows.append(("generated tokens/s", f"{generated / seconds:,.0f}"))
    return rows


def _tokens(summary: Summary) -> list[tuple[str, int, int]]:
    """`(stage, prompt tokens, generated tokens)` in the order of the stages."""
    named = {**summary.prompt_tokens, **summary.generated_tokens}
    ordered = [stage for stage in STAGES if stage in named] + sorted(set(named) - set(STAGES))
    return [(stage, summary.prompt_tokens[stage], summary.generated_tokens[stage]) for stage in ordered]


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", shorten(str(value))))
    return rows
