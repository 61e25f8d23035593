"""The page of a distillation run: counts by stage, kind and source, reasons with examples, lengths, cost, trajectories."""

from collections.abc import Mapping, Sequence
from typing import Any

from dcore_jax.data.records import Rejections
from dcore_jax.distill.report_samples import accepted_view, rejected_view
from dcore_jax.distill.tally import STAGES, LengthHistogram, OutcomeCounts, Reason, Summary
from dcore_jax.report import Page, Section, flat_settings, run_facts
from dcore_jax.report.blocks import bars, details, escape, paragraph, preformatted, stacked

PUBLISHED_SAMPLES_PER_SECOND = 0.44  # 40,000 samples in 25 h on one A100 with the 8B model (D-CORE, appendix)
_SHOWN_REASONS = 60
_SHOWN_REASON = 200  # characters of a reason in a summary line


def report_page(
    summary: Summary,
    *,
    seconds: int | float,
    config: Mapping[str, Any],
    rejected_seeds: Rejections,
    began: str = "",
) -> Page:
    """The page of a run from its counts; see `report.write_report`."""
    overall = summary.overall
    model = str(config.get("model", ""))
    further = {
        "seeds": ", ".join(map(str, config.get("seeds") or ())),
        "mode": str(config.get("mode", "")),
        "run folder": str(config.get("output", "")),
    }
    lead = (
        f"{overall.accepted:,} of {overall.samples:,} samples accepted ({100 * overall.rate:.1f} %), "
        f"which make {summary.records:,} training records."
    )
    title = f"Self-distillation of {model}" if model else "Self-distillation report"
    facts = run_facts(model, began=began, seconds=seconds, further=further)
    page = Page("dcore_jax · self-distillation", title, facts, lead)
    _stages(page.section("Success by stage"), summary)
    for name, groups in (("kind", summary.by_kind), ("source", summary.by_source)):
        _groups(page.section(f"Success by {name}"), name, groups, summary.stages())
    _reasons(page.section("Why samples were rejected"), summary)
    _seeds(page.section("Seeds that made no sample"), rejected_seeds)
    page.section("Lengths and subtasks").figures(*_histograms(summary))
    page.section("Cost").settings(_cost(summary, seconds)).table(
        ["stage", "prompt tokens", "generated tokens"], _tokens(summary)
    )
    outcomes = summary.trajectories.outcomes()
    shown = page.section(f"{len(outcomes)} random trajectories")
    for number, outcome in enumerate(outcomes, start=1):
        shown.add(_trajectory(number, accepted_view(outcome)))
    if not outcomes:
        shown.text("No sample was accepted.")
    page.section("Settings").settings(flat_settings(config), summary="every value that applied")
    return page


def _stages(section: Section, summary: Summary) -> None:
    samples = reached = summary.overall.samples
    rows, passed_bars = [], []
    for stage in STAGES:
        passed = summary.passed(stage)
        share = passed / samples if samples else 0.0
        rows.append((stage, reached, reached - passed, f"{100 * share:.1f} %"))
        passed_bars.append((stage, share, f"{100 * share:.1f} %"))
        reached = passed
    section.table(["stage", "came to it", "rejected there", "of all samples, passed"], rows)
    section.bars("Passed every stage so far", passed_bars, note="share of all samples", longest=1.0)
    section.text(
        "A stage that a kind does not have counts as passed: irrelevant and report samples are not decomposed.",
        note=True,
    )


def _groups(section: Section, name: str, groups: Mapping[str, OutcomeCounts], stages: Sequence[str]) -> None:
    rows = []
    for member, counts in sorted(groups.items()):
        ends = {"accepted": counts.accepted, **{stage: counts.by_stage[stage] for stage in stages}}
        cells = [member, counts.samples, counts.accepted, f"{100 * counts.rate:.1f} %"]
        rows.append(([*cells, *(counts.by_stage[stage] for stage in stages)], ends))
    columns = [name, "samples", "accepted", "", *stages]
    section.add(
        stacked(f"Accepted, then rejected by stage, by {name}", columns, rows, note="shares of samples")
    )


def _reasons(section: Section, summary: Summary) -> None:
    reasons = summary.ordered_reasons()
    for reason, count in reasons[:_SHOWN_REASONS]:
        section.add(_reason(summary, reason, count))
    if not reasons:
        section.text("No sample was rejected.")
    if unshown := sum(count for _, count in reasons[_SHOWN_REASONS:]):
        section.text(f"{unshown:,} more for rarer reasons.")


def _reason(summary: Summary, reason: Reason, count: int) -> str:
    parts = []
    for outcome in summary.examples[reason].outcomes():
        shown = rejected_view(outcome)
        parts.append(paragraph(f"{shown['origin']}, sample {shown['id']}", "label"))
        parts.append(preformatted(shown["query"], "query"))
        for key, kind, label in (
            ("reference", "call", "reference"),
            ("subtasks", "", "subtasks"),
            ("model_text", "thought", "what the model said"),
        ):
            if shown[key]:
                parts.append(preformatted(shown[key], kind, label))
    return details(f"{count:,} × {reason.stage}: {reason.text[:_SHOWN_REASON]}", "\n".join(parts))


def _seeds(section: Section, rejected: Rejections) -> None:
    rows = [
        (count, reason, rejected.examples.get(reason, ""))
        for reason, count in sorted(rejected.counts.items(), key=lambda item: item[1], reverse=True)
    ]
    if rows:
        section.table(["turns or records", "reason", "first"], rows)
    else:
        section.text("None.")


def _histograms(summary: Summary) -> list[str]:
    lengths = [
        ("Composed turn, characters", "turns", summary.turn_characters),
        ("Thought in it, characters", "turns", summary.thought_characters),
        ("Generated for a sample, tokens", "samples", summary.tokens_per_sample),
    ]
    charts = [_length_bars(title, of, found) for title, of, found in lengths if found.count]
    counted = [("Subtasks of an accepted sample", summary.subtasks)]
    if len(summary.attempts) > 1:
        counted.append(("Attempts at a sample", summary.attempts))
    for title, counts in counted:
        rows = [(str(number), counts[number], f"{counts[number]:,}") for number in sorted(counts)]
        if rows:
            charts.append(bars(title, rows, note="number of samples"))
    return charts


def _length_bars(title: str, of: str, lengths: LengthHistogram) -> str:
    rows = []
    for b in range(min(lengths.bins), max(lengths.bins) + 1):
        label = f"{(1 << b) >> 1:,}" + (f" to {(1 << b) - 1:,}" if b > 1 else "")
        rows.append((label, lengths.bins[b], f"{lengths.bins[b]:,}"))
    return bars(title, rows, note=f"number of {of}; mean {lengths.mean:,.0f}, longest {lengths.longest:,}")


def _cost(summary: Summary, seconds: int | float) -> list[tuple[str, str]]:
    generated, accepted = summary.generated_tokens.total(), summary.overall.accepted
    rows = [
        ("wall time", f"{seconds / 3600:.2f} h ({seconds:,.0f} s)"),
        ("prompt tokens", f"{summary.prompt_tokens.total():,}"),
        ("generated tokens", f"{generated:,}"),
        ("generated tokens for an accepted sample", f"{generated / accepted:,.0f}" if accepted else "-"),
    ]
    if seconds > 0:
        rate = summary.overall.samples / seconds
        published = f"published: {PUBLISHED_SAMPLES_PER_SECOND} with 8B on one A100 80 GB"
        rows.append(("samples/s", f"{rate:,.2f} ({published})"))
        rows.append(("generated tokens/s", f"{generated / seconds:,.0f}"))
    return rows


def _tokens(summary: Summary) -> list[tuple[str, int, int]]:
    """`(stage, prompt tokens, generated tokens)` in the order of the stages."""
    named = {**summary.prompt_tokens, **summary.generated_tokens}
    ordered = [stage for stage in STAGES if stage in named] + sorted(set(named) - set(STAGES))
    return [(stage, summary.prompt_tokens[stage], summary.generated_tokens[stage]) for stage in ordered]


def _trajectory(number: int, shown: Mapping[str, Any]) -> str:
    """Policy, tools, history, query, subtasks, and the composed turns with the tools' responses."""
    sample, turns = shown["sample"], shown["turns"]
    parts = ["<article>", f"<h3>{number}. {escape(sample.kind)}, {escape(sample.origin)}</h3>"]
    parts.append(paragraph(f"sample {sample.id}", "label"))
    if shown["policy"]:
        parts.append(details("policy", preformatted(shown["policy"])))
    tools = shown["tools"]
    parts.append(details(f"{len(tools)} tools: {', '.join(tools)}", preformatted(shown["schemas"])))
    if history := shown["history"]:
        told = "\n".join(preformatted(text, label=role) for role, text in history)
        parts.append(details(f"{len(history)} earlier messages", told))
    parts.append(preformatted(shown["query"], "query", "query"))
    if shown["subtasks"]:
        listed = "".join(f"<li>{escape(text)}</li>" for text in shown["subtasks"])
        parts.append(f'{paragraph("subtasks", "label")}<ol class="subtasks">{listed}</ol>')
    for place, turn in enumerate(turns, start=1):
        of_turn = f" of turn {place}" if len(turns) > 1 else ""
        if turn["thought"]:
            parts.append(preformatted(turn["thought"], "thought", f"thought{of_turn}"))
        if turn["text"]:
            kind = "call" if turn["calls"] else "reply"
            parts.append(preformatted(turn["text"], kind, kind))
        parts += [preformatted(text, "response", "tool response") for text in turn["responses"]]
    return "\n".join([*parts, "</article>"])
