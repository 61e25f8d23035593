"""`dcore eval tooltalk`: 78 conversations with stateful tools, each turn of the assistant after the reference's history."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from dcore_jax.cli.options import parse_options
from dcore_jax.errors import check_choice
from dcore_jax.evaluation.harness.agent_config import AGENT_ALIASES, AgentConfig

DESCRIPTION = "\n\n".join(
    [
        "ToolTalk: conversations with tools for mail, calendar, alarms, ..., scored by nvidia-tooltalk 26.3 itself.",
        "A conversation is right where every reference call is found and no action was wrong.",
    ]
)
_SETS, _APIS = ("easy", "hard"), ("all", "suite", "exact")


@dataclass(frozen=True)
class ToolTalkConfig:
    """ToolTalk's conversations and who plays them."""

    ALIASES: ClassVar = AGENT_ALIASES

    sets: tuple[str, ...] = _SETS
    """easy (28 conversations), hard (50)."""
    apis: str = "all"
    """Tools that the model is offered: all, those of the conversation's suites (suite), or those that it needs (exact)."""
    tasks: int | None = None
    """Only the first conversations of each set; None: all."""
    trials: int = 1
    """Times that each conversation is played."""
    distilbert: str = ""
    """Folder of distilbert-base-uncased, which compares free texts; empty: they must be equal."""
    predictions: tuple[str, ...] = ()
    """Stored trajectories to score instead: trajectories.jsonl of a run."""
    name: str = ""
    """What the model is called in the summary."""
    folder: str = ""
    """Where nvidia-tooltalk is installed; empty: the user's cache, or $DCORE_BENCHMARKS_HOME."""
    install: bool = False
    """Install nvidia-tooltalk from PyPI first, where it is not there yet."""
    output: str = "eval/tooltalk"
    """Folder for summary.json, items.jsonl, report.html and trajectories.jsonl; the same command goes on in it."""
    agent: AgentConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        check_choice("apis", self.apis, _APIS)
        for name in self.sets:
            check_choice("set", name, _SETS)


def run(arguments: Sequence[str]) -> None:
    """Parses, plays or reads, scores, writes the summary and prints its table."""
    config = parse_options(
        ToolTalkConfig,
        arguments,
        description=DESCRIPTION,
        default_config=lambda _: None,
        program="dcore eval tooltalk",
    )
    from dcore_jax.cli.evaluate.closing import close
    from dcore_jax.evaluation.harness import evaluate
    from dcore_jax.evaluation.harness.install import install, installed_folder
    from dcore_jax.evaluation.harness.process import HarnessProcess

    began = time.monotonic()
    if config.install:
        install("tooltalk", config.folder or None)
    folder = installed_folder("tooltalk", config.folder or None)
    prompting = config.agent.prompting
    harness = evaluate.HarnessRun(
        "tooltalk",
        {"sets": list(config.sets), "apis": config.apis, "count": config.tasks},
        trials=config.trials,
        settings={
            "release": "nvidia-tooltalk 26.3",
            "tools offered": config.apis,
            "free texts": "compared by DistilBERT"
            if config.distilbert
            else "must be equal (no --distilbert)",
            "no-think mode": prompting.no_think,
            "decomposed prompting": prompting.decompose,
        },
    )
    Path(config.output).mkdir(parents=True, exist_ok=True)
    given = [config.distilbert] if config.distilbert else []
    log = Path(config.output) / "tooltalk.log"
    with HarnessProcess("tooltalk_worker", paths=[folder], arguments=given, log=log) as process:
        if config.predictions:
            rows = evaluate.trajectory_rows
            found = evaluate.evaluate_trajectories(process, harness, config.predictions, rows, config.name)
        else:
            found = evaluate.evaluate_harness(process, harness, config.agent, config.output)
    close(replace(found, metrics={**found.metrics, **shares(found.metrics)}), config.output, began)


def shares(sums: Mapping[str, Any]) -> dict[str, float]:
    """ToolTalk's rates over all conversations, from the sums of its counts."""
    rates = {
        "precision": ("matches", "predictions"),
        "recall": ("matches", "ground_truths"),
        "action precision": ("valid_actions", "actions"),
        "bad action rate": ("bad_actions", "actions"),
    }
    return {name: sums[part] / sums[whole] for name, (part, whole) in rates.items() if sums.get(whole)}
