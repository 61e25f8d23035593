"""What a distillation run reports: report.html (one file that needs no network), a table for the terminal, Table 6."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from dcore_jax.calls import calls_equal, render_calls, split_thought
from dcore_jax.data.records import Rejections
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.distill.tally import STAGES, Ends, Lengths, Summary, composed_turn, summarise
from dcore_jax.distill.verify import written_calls
from dcore_jax.errors import UserError

PUBLISHED_SAMPLES_PER_SECOND = 0.44  # 40,000 samples in 25 h on one A100 with the 8B model (D-CORE, appendix)
PUBLISHED_TABLE6 = {  # decompositions that succeeded with Qwen3-8B, in per cent
    "no reference": 73.8,
    "reference": 89.1,
    "reference + few-shot": 93.2,
    "pseudo-labels": 92.8,
}
_SHOWN = 4_000  # characters of one text in the page
_SHOWN_REASONS = 60


class Table6Row(NamedTuple):
    """One way of decomposing the same seeds. `decomposed`: passed the count check."""

    mode: str
    samples: int
    decomposed: int
    accepted: int


def write_report(
    outcomes: Iterable[Outcome],
    out: str | os.PathLike[str],
    *,
    seconds: float,
    config: Mapping[str, Any],
    rejected_seeds: Rejections,
) -> Summary:
    """Write the page of a run to `out` and return what was counted.

    Outcomes are taken one at a time; ten accepted ones and a few of each reason are kept. Everything in the page
    that comes from data or from a model is escaped, and the page loads nothing. The file appears whole or not
    at all. `seconds` is the wall time of the run, over all its starts.
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
        example=_example,
        histograms=_histograms(summary),
        cost=_cost(summary, seconds),
        tokens=_tokens(summary),
        rejected_seeds=rejected_seeds,
        settings=_flat(config),
        trajectories=[_trajectory(outcome) for outcome in summary.trajectories.outcomes()],
    )
    path = Path(out)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Lone surrogates, which JSON can bring in, cannot be written: show them as a question mark.
        unfinished.write_bytes(page.encode("utf-8", errors="replace"))
        unfinished.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: the report cannot be written: {error.strerror}; choose another output"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return summary


def summary_table(summary: Summary, *, seconds: float = 0.0, reasons: int = 10) -> str:
    """The counts as text: one line a kind and a source, with where the others ended, then the first reasons."""
    stages = summary.stages()
    width = max([len(name) for name in (*summary.by_kind, *summary.by_source, "samples")])
    head = f"{'':{width}} {'samples':>9} {'accepted':>9} {'':>7}" + "".join(
        f" {stage:>9}" for stage in stages
    )
    lines = [head, _line("all", summary.ends, width, stages)]
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
    """Table 6 of the paper for these rows, in Markdown: decompositions that passed the count check, and verified samples."""
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


def _line(name: str, ends: Ends, width: int, stages: Sequence[str]) -> str:
    rejected = "".join(f" {ends.by_stage[stage]:>9,}" for stage in stages)
    return f"{name:{width}} {ends.samples:>9,} {ends.accepted:>9,} {100 * ends.rate:>5.1f} %{rejected}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _rate(summary: Summary, seconds: float) -> str:
    if seconds <= 0:
        return "time not measured"
    return f"{seconds / 3600:.2f} h, {summary.ends.samples / seconds:.2f} samples/s"


def _funnel(summary: Summary) -> list[tuple[str, int, int, float]]:
    """For each stage: `(stage, samples that came to it, rejected there, share of all that passed it)`."""
    samples = summary.ends.samples
    rows = []
    came = samples
    for stage in STAGES:
        passed = summary.passed(stage)
        rows.append((stage, came, came - passed, passed / samples if samples else 0.0))
        came = passed
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


def _length_chart(title: str, lengths: Lengths) -> dict[str, Any]:
    bars = [
        (f"{(1 << b) >> 1:,}" + (f" to {(1 << b) - 1:,}" if b > 1 else ""), lengths.bins[b])
        for b in range(min(lengths.bins), max(lengths.bins) + 1)
    ]
    note = f"mean {lengths.mean:,.0f}, longest {lengths.longest:,}"
    return {"title": title, "note": note, "bars": bars}


def _cost(summary: Summary, seconds: float) -> list[tuple[str, str]]:
    generated, accepted = summary.generated_tokens.total(), summary.ends.accepted
    rows = [
        ("wall time", f"{seconds / 3600:.2f} h ({seconds:,.0f} s)"),
        ("prompt tokens", f"{summary.prompt_tokens.total():,}"),
        ("generated tokens", f"{generated:,}"),
        ("generated tokens for an accepted sample", f"{generated / accepted:,.0f}" if accepted else "-"),
    ]
    if seconds > 0:
        rate = summary.ends.samples / seconds
        rows.append(
            (
                "samples/s",
                f"{rate:,.2f} (published: {PUBLISHED_SAMPLES_PER_SECOND} with 8B on one A100 80 GB)",
            )
        )
        rows.append(("generated tokens/s", f"{generated / seconds:,.0f}"))
    return rows


def _tokens(summary: Summary) -> list[tuple[str, int, int]]:
    """`(stage, prompt tokens, generated tokens)` in the stages' order."""
    named = {**summary.prompt_tokens, **summary.generated_tokens}
    ordered = [stage for stage in STAGES if stage in named] + sorted(set(named) - set(STAGES))
    return [(stage, summary.prompt_tokens[stage], summary.generated_tokens[stage]) for stage in ordered]


def _example(outcome: Outcome) -> dict[str, str]:
    sample = outcome.sample
    return {
        "origin": sample.origin,
        "id": sample.id,
        "query": _cut(sample.query),
        "reference": _cut(render_calls(sample.reference, "python")) if sample.reference else "",
        "subtasks": "\n".join(f"{i}. {text}" for i, text in enumerate(outcome.subtasks, 1)),
        "said": _cut(outcome.last_text),
    }


def _trajectory(outcome: Outcome) -> dict[str, Any]:
    sample = outcome.sample
    history = [
        (str(message.get("role")), _cut(_spoken(message)))
        for message in sample.history
        if message.get("role") != "system"
    ]
    return {
        "sample": sample,
        "policy": _cut(sample.policy),
        "tools": [tool["function"]["name"] for tool in sample.tools],
        "schemas": _cut(json.dumps(list(sample.tools), indent=1, ensure_ascii=False)),
        "history": history,
        "query": _cut(sample.query),
        "subtasks": outcome.subtasks,
        "turns": _turns(outcome),
    }


def _turns(outcome: Outcome) -> list[dict[str, Any]]:
    """The composed turns, each with its thought, what follows it, and what the tools answered.

    The responses to a turn stand before the next record's own turn; those to the last turn only in the seed, for calls
    that are the reference's own.
    """
    turns = []
    for number, record in enumerate(outcome.records):
        thought, rest, _ = split_thought(composed_turn(record))
        spoken = rest.strip()
        if calls := _spoken({**record["messages"][-1], "content": ""}):
            spoken = f"{spoken}\n{calls}".strip()
        last = number == len(outcome.records) - 1
        if not last:
            responses = _trailing_responses(outcome.records[number + 1])
        else:
            responses = _seed_responses(outcome.sample, composed_turn(record), number)
        turns.append(
            {
                "thought": _cut(thought or ""),
                "spoken": _cut(spoken),
                "calls": bool(outcome.sample.reference),
                "responses": [_cut(text) for text in responses if text],
            }
        )
    return turns


def _seed_responses(sample: SeedSample, turn: str, first: int) -> list[str]:
    """What the seed recorded for the calls of a turn, from the reference call `first` on; labels may call otherwise."""
    left, found = list(zip(sample.reference, sample.responses))[first:], []
    for call in written_calls(turn):
        match = next((pair for pair in left if calls_equal([call], pair[:1])), None)
        if match is not None:
            left.remove(match)
            found.append(match[1])
    return found


def _trailing_responses(record: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for message in reversed(record["messages"][:-1]):
        if message.get("role") != "tool":
            break
        found.insert(0, str(message.get("content") or ""))
    return found


def _spoken(message: Mapping[str, Any]) -> str:
    """The text of a message with its tool calls as JSON lines, whatever they hold."""
    functions = [call.get("function", call) for call in message.get("tool_calls") or ()]
    lines = [json.dumps(function, ensure_ascii=False, default=str) for function in functions]
    return "\n".join([text for text in [str(message.get("content") or ""), *lines] if text])


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _cut(str(value))))
    return rows


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} … ({len(text) - _SHOWN:,} more characters)"
