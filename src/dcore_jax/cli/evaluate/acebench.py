"""`dcore eval acebench`: ACEBench's questions and its own checker, from a checkout of the user's."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.harness.agent_config import AGENT_ALIASES, AgentConfig

DESCRIPTION = "\n\n".join(
    [
        "ACEBench: asks the questions of a checkout, writes the result files that its eval_main.py reads, and lets it score.",
        "--predictions scores a folder of result files, those with agents too.",
    ]
)


@dataclass(frozen=True)
class AceBenchConfig:
    """ACEBench's categories and who answers."""

    ALIASES: ClassVar = AGENT_ALIASES

    checkout: str = ""
    """Folder of a clone of ACEBench/ACEBench; nothing of it is changed."""
    categories: tuple[str, ...] = ("normal", "special")
    """Its names: normal, special, atom, multi_turn, agent, test_all, or single categories."""
    language: str = "en"
    """en or zh."""
    tasks: int | None = None
    """Only the first questions of each category are asked; the others count as wrong."""
    predictions: str = ""
    """Folder of result files to score instead: result_all/result_en/<model>."""
    name: str = ""
    """What the model is called in the summary."""
    output: str = "eval/acebench"
    """Folder for summary.json, items.jsonl, report.html and result_all/ (the result files)."""
    agent: AgentConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        check_choice("language", self.language, ("en", "zh"))


def run(arguments: Sequence[str]) -> None:
    """Parses, asks or reads, lets the checkout score, writes the summary and prints its table."""
    config = parse_options(
        AceBenchConfig,
        arguments,
        description=DESCRIPTION,
        default_config=lambda _: None,
        program="dcore eval acebench",
    )
    if not config.checkout:
        raise UserError("no benchmark: give --checkout <clone of github.com/ACEBench/ACEBench>")
    from dcore_jax.cli.evaluate.closing import close
    from dcore_jax.evaluation.acebench import categories_of, score_results
    from dcore_jax.evaluation.summary import Evaluation

    began, checkout, work = time.monotonic(), Path(config.checkout), Path(config.output).resolve()
    categories = categories_of(checkout, config.categories)
    left_out: list[str] = []
    results = Path(config.predictions)
    if not config.predictions:
        results = work / "results"
        left_out = _ask(config, checkout, categories, results)
    items, accuracies, unscored = score_results(checkout, results, categories, config.language, work)
    found = Evaluation(
        "acebench",
        config.name or (results.name if config.predictions else config.agent.label),
        tuple(items),
        (*left_out, *unscored),
        settings={
            "language": config.language,
            "no-think mode": config.agent.prompting.no_think,
            "decomposed prompting": config.agent.prompting.decompose,
        },
        metrics=accuracies,
    )
    close(found, config.output, began)


def _ask(config: AceBenchConfig, checkout: Path, categories: Sequence[str], results: Path) -> list[str]:
    """Writes a result file for each category; a line for each question without an answer."""
    from dcore_jax.evaluation.acebench import read_questions, write_results
    from dcore_jax.evaluation.single_turn import Prompt, answer_prompts

    asked = {category: read_questions(checkout, category, config.language) for category in categories}
    prompts = [
        Prompt(q.id, q.messages, q.reference)
        for questions in asked.values()
        for q in questions[: config.tasks]
    ]
    texts, left_out = answer_prompts(prompts, config.agent, config.output)
    for category, questions in asked.items():
        write_results(results, category, texts, questions)
    return left_out
