"""Reports of a distillation run: report.html (one file that needs no network), a table for the terminal, Table 6."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dcore_jax.data.records import Rejections
from dcore_jax.distill.report_page import report_page
from dcore_jax.distill.sample import Outcome
from dcore_jax.distill.tally import OutcomeCounts, Summary, summarise

PUBLISHED_TABLE6 = {  # decompositions that succeeded with Qwen3-8B, in per cent
    "no reference": 73.8,
    "reference": 89.1,
    "reference + few-shot": 93.2,
    "pseudo-labels": 92.8,
}


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
    began: str = "",
) -> Summary:
    """Writes the page of a run to `out` and returns the counts.

    Outcomes are taken one at a time; ten accepted ones and a few of each reason are kept. Text from data or from a
    model is escaped, and the page loads nothing. The file is written as a whole or not at all.

    Args:
      seconds: wall time of the run, over all its starts.
      config: the run's settings, for the page.
      rejected_seeds: seeds that made no sample, for the page.
      began: when the run was first started, ISO 8601.

    Raises:
      UserError: the file cannot be written.
    """
    summary = summarise(outcomes)
    page = report_page(summary, seconds=seconds, config=config, rejected_seeds=rejected_seeds, began=began)
    page.write(out)
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
