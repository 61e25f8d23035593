"""`dcore eval bfcl`: the Berkeley Function Calling Leaderboard, for a model or for stored outputs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError

if TYPE_CHECKING:
    from dcore_jax.evaluation.bfcl.styles import Mode
    from dcore_jax.evaluation.summary import Evaluation


@dataclass(frozen=True)
class BFCLOptions:
    """BFCL for a model or for stored outputs."""

    results: str = ""
    """Folder of result files, BFCL_v3_<category>_result.json: a model's own, or one that holds a folder for each model."""
    model_name: str | None = None
    """The model among several in --results, and its name in the benchmark's list of models; None: the folder's name."""
    bfcl_version: Literal["v3", "v4"] | None = None
    """Data and checkers of this version; None: that of the result files."""
    categories: tuple[str, ...] = ()
    """Categories or groups (live, non_live, multi_turn, ...); empty: all that have a file."""
    mode: Literal["auto", "prompt", "fc"] = "auto"
    """How calls are written: Python text, or function calling; auto: seen from the outputs and the benchmark's list of models."""
    item_seconds: float = 30.0
    """Time limit of one item; past it the answer counts as wrong."""
    bfcl_folder: str | None = None
    """Where bfcl-eval is or goes; None: $DCORE_BFCL_HOME/<version>, or dcore_jax/bfcl/<version> in the user's cache."""
    output: str = "eval"
    """Folder for summary.json, items.jsonl and report.html."""


def run(arguments: Sequence[str]) -> None:
    """Parses, scores, writes the summary and prints the table."""
    options = parse_options(
        BFCLOptions,
        arguments,
        description="The Berkeley Function Calling Leaderboard, scored by the package bfcl-eval itself.",
        default_config=lambda _: None,
        program="dcore eval bfcl",
    )
    if not options.results:
        raise UserError("give --results <folder of BFCL_v3_<category>_result.json files>")
    from dcore_jax.evaluation.summary import summary_text, write_evaluation

    start = time.monotonic()
    evaluation = score_stored(
        options.results,
        options.model_name,
        version=options.bfcl_version,
        categories=options.categories,
        mode=options.mode,
        seconds=options.item_seconds,
        folder=options.bfcl_folder,
    )
    page = write_evaluation(options.output, evaluation, seconds=time.monotonic() - start)
    print(summary_text(evaluation))
    print(f"wrote {page} and summary.json")


def score_stored(
    results: str,
    model_name: str | None,
    *,
    version: str | None = None,
    categories: Sequence[str] = (),
    mode: "Mode" = "auto",
    seconds: float = 30.0,
    folder: str | None = None,
) -> "Evaluation":
    """The evaluation of stored outputs; None as version: that of the files."""
    from dcore_jax.evaluation.bfcl.results import find_result_files
    from dcore_jax.evaluation.bfcl.score import score_results

    _, files = find_result_files(results, model_name)
    version = version or max(file.version for file in files)
    return score_results(
        results,
        installed(version, folder),
        version,
        model_name=model_name,
        categories=categories,
        mode=mode,
        seconds=seconds,
    )


def installed(version: str, folder: str | None) -> Path:
    """The folder of bfcl-eval; installs it there, saying so, where it is not yet."""
    from dcore_jax.evaluation.bfcl.install import RELEASES, default_folder, install, is_installed

    target = Path(folder) if folder else default_folder(version)
    if not is_installed(target, version):
        print(f"installing bfcl-eval {RELEASES[version]} into {target} (once; 15 MB)", flush=True)
    return install(version, target)
