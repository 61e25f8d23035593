"""`dcore eval api-bank`: exact match of the calls of API-Bank's dialogues, level by level."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.agent_config import AGENT_ALIASES, AgentConfig

DESCRIPTION = "\n\n".join(
    [
        "API-Bank: is one of a turn's calls exactly the reference's? A level is a file; the micro average stands under `all`.",
        "--model asks an engine of ours, with --url a server. --predictions scores stored answers: JSON lines {id, prediction},",
        "a list, or a mapping by row; any notation of calls.",
    ]
)


@dataclass(frozen=True)
class ApiBankConfig:
    """API-Bank's questions and the answers to score."""

    ALIASES: ClassVar = AGENT_ALIASES

    data: tuple[str, ...] = ()
    """Files of levels, such as level-1.json: rows {system, user, answer}."""
    predictions: tuple[str, ...] = ()
    """Files of stored answers, one for each file of --data, in the same order."""
    name: str = ""
    """What the model is called in the summary; empty: its folder, or the first file of its answers."""
    output: str = "eval/api-bank"
    """Folder for summary.json, items.jsonl and report.html; the same command goes on in it."""
    agent: AgentConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        if self.predictions and len(self.predictions) != len(self.data):
            raise UserError(
                f"{len(self.predictions)} files of --predictions for {len(self.data)} of --data; "
                "give one for each, in the same order"
            )


def run(arguments: Sequence[str]) -> None:
    """Parses, asks or reads, scores, writes the summary and prints its table."""
    config = parse_options(
        ApiBankConfig,
        arguments,
        description=DESCRIPTION,
        default_config=lambda _: None,
        program="dcore eval api-bank",
    )
    if not config.data:
        raise UserError("no questions: give --data level-1.json (rows {system, user, answer})")
    from dcore_jax.cli.evaluate.closing import close
    from dcore_jax.evaluation.api_bank import evaluate_agent, evaluate_files

    began = time.monotonic()
    if config.predictions:
        found = evaluate_files(config.data, config.predictions, config.name)
    else:
        found = evaluate_agent(config.data, config.agent, config.output, config.name)
    close(found, config.output, began)
