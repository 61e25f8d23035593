"""`dcore eval compare A B`: two evaluations of one benchmark, item by item."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError


@dataclass(frozen=True)
class CompareOptions:
    """Two evaluations, item by item."""

    a: str = ""
    """Folder that `dcore eval` wrote; also the first word: `dcore eval compare A B`."""
    b: str = ""
    """Folder that is compared with it; also the second word."""
    output: str | None = None
    """Folder for summary.json and report.html; None: nothing is written."""
    seed: int = 0
    """Of the bootstrap."""


def run(arguments: Sequence[str]) -> None:
    """Parses, compares, prints the table."""
    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if len(folders) > 2:
        raise UserError("give two folders that `dcore eval` wrote, not more")
    named = [word for pair in zip(("--a", "--b"), folders) for word in pair]
    words = [*named, *arguments[len(folders) :]]
    options = parse_options(
        CompareOptions,
        words,
        description="Two evaluations of one benchmark on the items that both have: b minus a.",
        default_config=lambda _: None,
        program="dcore eval compare",
    )
    if not options.a or not options.b:
        raise UserError("give two folders that `dcore eval` wrote: dcore eval compare A B")
    from dcore_jax.evaluation.compare import compare, comparison_text, write_comparison
    from dcore_jax.evaluation.summary import read_evaluation

    comparison = compare(read_evaluation(options.a), read_evaluation(options.b), seed=options.seed)
    print(comparison_text(comparison))
    if options.output:
        print(f"wrote {write_comparison(options.output, comparison)} and summary.json")
