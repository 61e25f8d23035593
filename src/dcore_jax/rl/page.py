"""`report.html` of an RL run, made from what its folder holds."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcore_jax.config import read_yaml
from dcore_jax.metrics import read_metrics
from dcore_jax.player.evaluation_page import add_evaluations
from dcore_jax.report import (
    SMOOTHED,
    Chart,
    Curve,
    Page,
    Section,
    Series,
    bars,
    density_chart,
    flat_settings,
    line_chart,
    run_facts,
    turns_of,
)
from dcore_jax.training.run_folder import run_record

_CURVES = (
    Curve("correct", "Exactly the reference calls", "share of responses", log="no"),
    Curve("entropy", "Entropy", "nats per token"),
    Curve("response_length", "Response length", "tokens", log="no"),
    Curve("zero_variance_groups", "Groups without reward variance", "share of groups", log="no"),
    Curve("truncated", "Responses cut off at the longest length", "share of responses", log="no"),
    Curve("unreadable_calls", "Responses whose calls cannot be read", "share of responses", log="no"),
    Curve("reflections_per_thought", "Reflection words", "words per thought", log="no"),
    Curve("advantage_replaced", "Advantages replaced by entropy", "share of tokens", log="no"),
    Curve("ref_kl", "KL to the reference policy", "nats per token"),
    Curve("clip_fraction_high", "Tokens clipped above", "share of tokens", log="no"),
    Curve("gradient_norm", "Gradient norm before clipping", "norm"),
    Curve("learning_rate", "Learning rate", "learning rate", smoothed=False, log="no"),
)
_REGIONS = ("thinking", "format", "name", "parameters", "outside")
_SHOWN = 6  # trajectories


def write_page(output: Path, hardware: str = "") -> Path:
    """Writes the page of a run that has done a step.

    Args:
      hardware: what it ran on, for the header.
    """
    rows, record = read_metrics(output / "metrics.jsonl"), run_record(output)
    config, greedy = read_yaml(output / "config.yaml"), _rows(output / "evaluation.jsonl")
    algorithm = config.get("algorithm") or {}
    facts = run_facts(
        record.model,
        began=record.began,
        seconds=sum(float(row["seconds"]) for row in rows),
        further={
            "algorithm": f"{algorithm.get('name', '')}, preset {algorithm.get('preset', '')}",
            "steps": f"{rows[-1]['step']:,} of {config.get('prompts')} prompts x {(config.get('rollout') or {}).get('group')}",
            "hardware": hardware,
            "run folder": str(output),
        },
    )
    page = Page("dcore_jax · reinforcement learning", f"RL of {record.model}", facts, _lead(rows, greedy))
    if greedy:
        _held_out(page.section("Greedy answers to the fixed prompts"), greedy)
    curves = page.section("Curves").figures(_reward_chart(rows, greedy), _parts_chart(rows))
    curves.curves(rows, _CURVES).text(SMOOTHED, note=True)
    add_evaluations(page, output)
    _entropies(page.section("Entropy and spread of rewards"), rows, output / "token_entropy.json")
    _trajectories(page.section("Trajectories"), output)
    _cost(page.section("Time"), rows)
    data = json.loads((output / "data.json").read_text()) if (output / "data.json").exists() else {}
    _data(page.section("Data"), data)
    page.section("Settings").settings(flat_settings(config), summary="every value that applied")
    return page.write(output / "report.html")


def _lead(rows: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]]) -> str:
    few = max(1, min(5, len(rows) // 4))
    first, last = (np.mean([float(row["reward"]) for row in part]) for part in (rows[:few], rows[-few:]))
    text = f"Reward {first:.3f} to {last:.3f} over {rows[-1]['step']:,} steps (means of {few})."
    if len(greedy) > 1:
        before, after = (f"{row['correct']:.1%}" for row in (greedy[0], greedy[-1]))
        text += f" Greedy answers that are exactly right: {before} to {after} of {greedy[-1]['prompts']} fixed prompts."
    return text


def _held_out(section: Section, greedy: Sequence[Mapping[str, Any]]) -> None:
    first, last = greedy[0], greedy[-1]
    steps = [row["step"] for row in greedy]
    charts = [
        line_chart(
            title, [Series(key, steps, [float(row[key]) for row in greedy], "points")], y=label, log="no"
        )
        for key, title, label in (
            ("correct", "Exactly right, greedy", "share of prompts"),
            ("reward", "Reward, greedy", "reward"),
        )
    ]
    section.figures(*charts)
    groups = [key.partition("/")[2] for key in last if key.startswith("correct/")]
    columns = [f"step {first['step']}", f"step {last['step']}"]
    table = [
        [name, *(f"{row.get(f'correct/{name}', float('nan')):.1%}" for row in (first, last))]
        for name in groups
    ]
    total = ["all", *(f"{row['correct']:.1%}" for row in (first, last))]
    section.table(["exactly right, by category", *columns], [total, *table])


def _reward_chart(rows: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]]) -> Chart:
    steps = [row["step"] for row in rows]
    series = [Series("sampled, each step", steps, [float(row["reward"]) for row in rows], "smoothed")]
    if greedy:
        points = [float(row["reward"]) for row in greedy]
        series.append(Series("greedy, fixed prompts", [row["step"] for row in greedy], points, "points"))
    return line_chart("Reward", series, y="reward", log="no")


def _parts_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """What each part contributes to the reward; weights other than 1 are in it."""
    parts = [key for key in rows[-1] if key.startswith("reward_")]
    series = []
    for key in parts:
        found = [(row["step"], float(row[key])) for row in rows if key in row]
        name = key.removeprefix("reward_")
        series.append(Series(name, [x for x, _ in found], [y for _, y in found], "smoothed"))
    shown = [one for one in series if one.live]
    dead = ", ".join(one.name for one in series if not one.live)
    note = f"always 0: {dead}" if dead else ""
    return line_chart("Reward by part", shown, y="contribution", note=note, log="no")


def _entropies(section: Section, rows: Sequence[Mapping[str, Any]], tokens: Path) -> None:
    regions = []
    for region in _REGIONS:
        found = [(row["step"], float(row[f"entropy_{region}"])) for row in rows if f"entropy_{region}" in row]
        if found:
            regions.append(Series(region, [x for x, _ in found], [y for _, y in found], "smoothed"))
    third = max(1, len(rows) // 3)
    early, late = (
        np.concatenate([row["group_reward_std"] for row in part]) for part in (rows[:third], rows[-third:])
    )
    groups = {"first third of the steps": early, "last third": late}
    section.figures(
        line_chart("Entropy by region of a response", regions, y="nats per token"),
        density_chart("Spread of reward within a group", groups, x="standard deviation", y="share of groups"),
    )
    if tokens.exists():
        extremes = json.loads(tokens.read_text(encoding="utf-8"))
        listed = {
            kind: [
                (_visible(row["token"]), row["entropy"], f"{row['entropy']:.3g}") for row in extremes[kind]
            ]
            for kind in ("highest", "lowest")
        }
        section.figures(
            *(
                bars(f"Tokens of {kind} mean entropy", rows, note="nats where they were sampled")
                for kind, rows in listed.items()
            )
        )


def _visible(token: str) -> str:
    """A token with its white space shown and its letters of any script as they are."""
    return token.replace(" ", "␣").replace("\n", "\\n").replace("\t", "\\t") or "(empty)"


def _trajectories(section: Section, output: Path) -> None:
    """The same prompts at the run's first and last look: greedy answers where they were kept, else sampled ones."""
    answers = output / "evaluation_answers.jsonl"
    looks = _first_and_last(_rows(answers)) if answers.exists() else {}
    kind = "greedy answers to fixed prompts"
    if not looks:
        looks, kind = _first_and_last(_stream(output / "rollouts.jsonl")), "sampled; the first of each group"
    if not looks:
        section.text("No prompt was answered twice; with --evaluation.prompts the fixed ones are.")
        return
    section.text(
        f"{min(_SHOWN, len(looks))} of {len(looks):,} prompts, drawn by a hash, one of each category in turn; {kind}.",
        note=True,
    )
    for before, after in _in_turns(looks.values())[:_SHOWN]:
        section.compare(
            str(before["category"]),
            str(before.get("query") or before.get("prompt", "")),
            turns_of(before["response"]),
            turns_of(after["response"]),
            names=(f"step {before['step']}", f"step {after['step']}"),
            verdicts=(_verdict(before), _verdict(after)),
            right=(bool(before["correct"]), bool(after["correct"])),
            reference=str(before.get("reference", "")),
            note=str(before["origin"]),
        )


def _verdict(row: Mapping[str, Any]) -> str:
    return f"{'right' if row['correct'] else 'wrong'}, reward {row['reward']:.3g}"


def _first_and_last(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By prompt its first answer and the first one of the last step that has one, for prompts with answers in two steps.

    A hash decides which prompts are looked at: so few that at most 500 are in memory.
    """
    seen: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    bound = 1.0
    for row in rows:
        # The turns of one conversation share an origin.
        prompt = f"{row['origin']} {row.get('query') or row.get('prompt', '')}"
        if _share(prompt) > bound:
            continue
        before, after = seen.get(prompt, (row, row))
        seen[prompt] = (before, row if row["step"] != after["step"] else after)
        while len(seen) > 500:
            bound /= 2
            seen = {name: pair for name, pair in seen.items() if _share(name) <= bound}
    return {name: pair for name, pair in seen.items() if pair[0]["step"] != pair[1]["step"]}


def _in_turns(
    pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """One of each category after the other, by the hashes of their origins."""
    places: dict[str, int] = {}
    ranked = []
    for pair in sorted(pairs, key=lambda pair: _share(str(pair[0]["origin"]))):
        place = places[pair[0]["category"]] = places.get(pair[0]["category"], -1) + 1
        ranked.append((place, pair))
    return [pair for _, pair in sorted(ranked, key=lambda item: item[0])]


def _share(text: str) -> float:
    """A number in [0, 1) from a hash."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:6]) / 2**48


def _cost(section: Section, rows: Sequence[Mapping[str, Any]]) -> None:
    total = sum(float(row["seconds"]) for row in rows)
    phases = [key.removeprefix("seconds_") for key in rows[-1] if key.startswith("seconds_")]
    spent = [(name, sum(float(row.get(f"seconds_{name}", 0.0)) for row in rows)) for name in phases]
    listed = [
        (name, seconds, f"{seconds:,.0f} s, {seconds / max(total, 1e-9):.0%}") for name, seconds in spent
    ]
    section.bars("Time by phase", listed, note="seconds in all steps")


def _data(section: Section, data: Mapping[str, Any]) -> None:
    numbers = [(key.replace("_", " "), value) for key, value in data.items() if isinstance(value, int)]
    if numbers:
        section.table(["what was read", "number"], numbers)
    for key in ("by_category", "by_notation", "rejected"):
        if found := data.get(key):
            heading = "left out" if key == "rejected" else key.replace("_", " ")
            section.table([heading, "number"], sorted(found.items()))


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []


def _stream(path: Path) -> Iterable[dict[str, Any]]:
    """The rows of a file that may be large, one at a time; a half-written last line is dropped."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return
