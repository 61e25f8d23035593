"""Groups of categories as the leaderboard and the papers report them, and the published rows beside which ours stand."""

from collections.abc import Mapping

from dcore_jax.evaluation.summary import Evaluation
from dcore_jax.report import Count

# In percent. D-CORE (arXiv 2602.02160): overall of BFCL v3 and its multi-turn group, with the base models that it measured.
_PUBLISHED_V3: dict[str, dict[str, float]] = {
    "Qwen3-8B (D-CORE's paper)": {"overall": 66.3, "multi_turn": 33.0},
    "D-CORE-8B (paper)": {"overall": 77.7, "multi_turn": 63.8},
    "Qwen3-14B (D-CORE's paper)": {"overall": 65.9, "multi_turn": 36.6},
    "D-CORE-14B (paper)": {"overall": 79.3, "multi_turn": 67.4},
    "Qwen3-4B-2507 (ResT's paper)": {"multi_turn": 48.00},
    "ResT, Qwen3-4B-2507 (paper)": {"multi_turn": 50.38},
}
_COLUMNS = ("non_live", "live", "multi_turn", "overall")
_MULTI_TURN = ("base", "miss_func", "miss_param", "long_context")
_LIVE = ("simple", "multiple", "parallel", "parallel_multiple")


def published_rows(version: str) -> Mapping[str, Mapping[str, float]]:
    """Published accuracies in percent by model; the papers report v3 only."""
    return _PUBLISHED_V3 if version == "v3" else {}


def group_accuracies(
    shares: Mapping[str, float], counts: Mapping[str, Count], version: str
) -> dict[str, float]:
    """`non_live`, `live`, `multi_turn` and `overall` by the leaderboard's formulas, each where all its categories are there.

    non_live: mean over simple (itself the mean of Python, Java and JavaScript), multiple, parallel and parallel_multiple, in v3
    irrelevance too. live: over its questions; v3 counts relevance and irrelevance among them. multi_turn: mean of its four
    categories. overall: mean of the three in v3; v4's weighs agentic categories too, which need the web, and is not made.
    """
    prefix = "simple_" if version == "v4" else ""
    python = "simple_python" if version == "v4" else "simple"
    simple = _mean(shares, (python, f"{prefix}java", f"{prefix}javascript"))
    calls = _mean(
        {**shares, "all_simple": simple}, ("all_simple", "multiple", "parallel", "parallel_multiple")
    )
    live = [f"live_{name}" for name in _LIVE]
    if version == "v3":
        irrelevance = shares.get("irrelevance")
        calls = (4 * calls + irrelevance) / 5 if calls is not None and irrelevance is not None else None
        live += ["live_irrelevance", "live_relevance"]
    groups: dict[str, float | None] = {
        "non_live": calls,
        "live": _pooled(counts, live),
        "multi_turn": _mean(shares, [f"multi_turn_{name}" for name in _MULTI_TURN]),
    }
    if version == "v3":
        groups["overall"] = _mean(groups, ("non_live", "live", "multi_turn"))
    return {name: value for name, value in groups.items() if value is not None}


def table_text(evaluation: Evaluation, version: str) -> str:
    """Group figures in percent beside the published rows, as D-CORE's Table 1 has them; empty where ours has none."""
    ours = {name: 100 * value for name in _COLUMNS if (value := evaluation.metrics.get(name)) is not None}
    if not ours:
        return ""
    rows: dict[str, Mapping[str, float]] = {evaluation.model: ours, **published_rows(version)}
    width = max(map(len, rows))
    lines = [f"{'':<{width}}" + "".join(f"{name:>12}" for name in _COLUMNS)]
    lines += [
        f"{name:<{width}}" + "".join(f"{row[c]:>12.1f}" if c in row else f"{'':>12}" for c in _COLUMNS)
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def _mean(shares: Mapping[str, float | None], names: tuple[str, ...] | list[str]) -> float | None:
    values = [shares.get(name) for name in names]
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if len(found) == len(values) else None


def _pooled(counts: Mapping[str, Count], names: list[str]) -> float | None:
    if not all(name in counts for name in names):
        return None
    return sum(counts[name].part for name in names) / sum(counts[name].whole for name in names)
