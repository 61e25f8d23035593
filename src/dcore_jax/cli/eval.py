"""`dcore eval <benchmark>`: a benchmark's own questions and checkers for a model or for stored answers."""

import difflib
import importlib
from collections.abc import Sequence

from dcore_jax.errors import UserError

# Benchmark -> its line in `dcore eval --help`; each is a module of cli/evaluate with `run(arguments)`.
BENCHMARKS: dict[str, str] = {
    "bfcl": "the Berkeley Function Calling Leaderboard, v3 and v4, by its own checkers",
    "compare": "two evaluations of one benchmark, item by item: dcore eval compare A B",
    "toolworld": "held-out tasks of the tool world, played with any engine",
    "api-bank": "API-Bank: exact match of a turn's call, by level",
    "acebench": "ACEBench, from a checkout: its questions, result files and checker",
    "tau-bench": "tau-bench, from a checkout: conversations with a simulated user",
    "tooltalk": "ToolTalk: conversations with stateful tools, turn by turn",
    "tau2": "tau2: conversations with a simulated user, tools and a state",
}


def run(arguments: Sequence[str]) -> None:
    """Hands the words after the benchmark's name to its module.

    Raises:
      UserError: no such benchmark.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    name, *rest = arguments
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the benchmarks are {', '.join(BENCHMARKS)}"
        raise UserError(f"dcore eval knows no {name!r}; {hint}")
    importlib.import_module(f"dcore_jax.cli.evaluate.{name.replace('-', '_')}").run(rest)


def _overview() -> str:
    width = max(map(len, BENCHMARKS), default=0) + 2
    return "\n".join(
        [
            "usage: dcore eval BENCHMARK [options]        dcore eval BENCHMARK --help",
            "",
            *(f"  {name:<{width}}{text}" for name, text in BENCHMARKS.items()),
            "",
            "Each writes summary.json, items.jsonl and report.html into --output.",
        ]
    )
