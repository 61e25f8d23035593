"""`dcore eval tooltalk`: 78 conversations with stateful tools, each turn of the assistant after the reference's history."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcore_jax.cli.evaluate.conversations import ConversationOptions, InstalledOptions
from dcore_jax.cli.options import parse_options
from dcore_jax.errors import check_choice

DESCRIPTION = "\n\n".join(
    [
        "ToolTalk: conversations with tools for mail, calendar, alarms, ..., scored by nvidia-tooltalk 26.3 itself.",
        "A conversation is right where every reference call is found and no action was wrong.",
    ]
)
_SETS, _APIS = ("easy", "hard"), ("all", "suite", "exact")


@dataclass(frozen=True)
class ToolTalkConfig(InstalledOptions, ConversationOptions):
    """ToolTalk's conversations and who plays them."""

    sets: tuple[str, ...] = _SETS
    """easy (28 conversations), hard (50)."""
    apis: str = "all"
    """Tools that the model is offered: all, those of the conversation's suites (suite), or those that it needs (exact)."""
    distilbert: str = ""
    """Folder of distilbert-base-uncased, which compares free texts; empty: they must be equal."""
    output: str = "eval/tooltalk"
    """Folder for summary.json, items.jsonl, report.html and trajectories.jsonl; the same command goes on in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
    from dcore_jax.evaluation.harness.evaluate import HarnessRun, play_or_score, trajectory_rows
    from dcore_jax.evaluation.harness.process import HarnessProcess

    began = time.monotonic()
    folder = config.installed("tooltalk")
    compared = "compared by DistilBERT" if config.distilbert else "must be equal (no --distilbert)"
    harness = HarnessRun(
        "tooltalk",
        {"sets": list(config.sets), "apis": config.apis, "count": config.tasks},
        trials=config.trials,
        settings={
            "release": "nvidia-tooltalk 26.3",
            "tools offered": config.apis,
            "free texts": compared,
            **config.settings,
        },
    )
    Path(config.output).mkdir(parents=True, exist_ok=True)
    given = [config.distilbert] if config.distilbert else []
    log = Path(config.output) / "tooltalk.log"
    with HarnessProcess("tooltalk_worker", paths=[folder], arguments=given, log=log) as process:
        found = play_or_score(
            process,
            harness,
            config.agent,
            config.output,
            predictions=config.predictions,
            read=trajectory_rows,
            name=config.name,
        )
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
