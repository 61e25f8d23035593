"""`dcore eval tau-bench`: the first tau-bench (airline, retail), from a checkout of the user's."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from dcore_jax.cli.evaluate.tau2 import user_of
from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.harness.agent_config import AGENT_ALIASES, AgentConfig

DESCRIPTION = "\n\n".join(
    [
        "tau-bench from the user's own clone of sierra-research/tau-bench, of which nothing is changed; it needs pydantic.",
        "The agent is an engine of ours (--model) or an OpenAI-compatible server (--url); the user a server or a script.",
    ]
)
_DOMAINS = ("airline", "retail")


@dataclass(frozen=True)
class TauBenchConfig:
    """tau-bench's tasks, who plays them, and who is the user."""

    ALIASES: ClassVar = AGENT_ALIASES

    checkout: str = ""
    """Folder of a clone of sierra-research/tau-bench."""
    domains: tuple[str, ...] = _DOMAINS
    """airline, retail."""
    split: str = "test"
    """test; retail has train and dev too."""
    tasks: int | None = None
    """Only the first tasks of each domain; None: all."""
    trials: int = 1
    """Times that each task is played; pass^k for k up to it."""
    user: str = ""
    """Address of the user simulator's OpenAI-compatible server, a JSON file of turns by task, or `silent`."""
    user_model: str = ""
    """Name that the user's server knows its model by."""
    user_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key of the user's server."""
    user_temperature: float = 1.0
    """Of the user's server; tau-bench leaves it at the server's own, mostly 1."""
    max_steps: int = 30
    """Steps of the agent in a conversation, as tau-bench's own agents have it."""
    predictions: tuple[str, ...] = ()
    """Stored trajectories to score instead: trajectories.jsonl of a run, or tau-bench's own results (with one of --domains)."""
    name: str = ""
    """What the model is called in the summary."""
    output: str = "eval/tau-bench"
    """Folder for summary.json, items.jsonl, report.html and trajectories.jsonl; the same command goes on in it."""
    agent: AgentConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        for domain in self.domains:
            check_choice("domain", domain, _DOMAINS)


def run(arguments: Sequence[str]) -> None:
    """Parses, plays or reads, scores, writes the summary and prints its table."""
    config = parse_options(
        TauBenchConfig,
        arguments,
        description=DESCRIPTION,
        default_config=lambda _: None,
        program="dcore eval tau-bench",
    )
    if not (Path(config.checkout) / "tau_bench").is_dir() or not config.checkout:
        raise UserError("no benchmark: give --checkout <clone of github.com/sierra-research/tau-bench>")
    from dcore_jax.cli.evaluate.closing import close
    from dcore_jax.evaluation.harness.evaluate import HarnessRun, evaluate_harness, evaluate_trajectories
    from dcore_jax.evaluation.harness.process import HarnessProcess

    began = time.monotonic()
    settings = {}
    if not config.predictions:
        settings = user_of(
            config.user, config.user_model, config.user_key_variable, config.user_temperature, config.agent
        )
    harness = HarnessRun(
        "tau-bench",
        {"domains": list(config.domains), "split": config.split, "count": config.tasks},
        {"user_settings": settings, "max_steps": config.max_steps},
        config.trials,
        settings={
            "split": config.split,
            "user": config.user_model or config.user or "of the scripted player",
            "trials": config.trials,
            "no-think mode": config.agent.prompting.no_think,
            "decomposed prompting": config.agent.prompting.decompose,
        },
    )
    Path(config.output).mkdir(parents=True, exist_ok=True)
    paths, log = [Path(config.checkout).resolve()], Path(config.output) / "tau-bench.log"
    with HarnessProcess("tau_bench_worker", paths=paths, log=log) as process:
        if config.predictions:
            read = partial(stored_rows, domains=config.domains)
            found = evaluate_trajectories(process, harness, config.predictions, read, config.name)
        else:
            found = evaluate_harness(process, harness, config.agent, config.output)
    close(found, config.output, began)


def stored_rows(path: Path, domains: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """Rows of a `trajectories.jsonl`, or the conversations of a results file that tau-bench itself wrote.

    Raises:
      UserError: tau-bench's results, which name no domain, with several of `domains`.
    """
    from dcore_jax.evaluation.harness.evaluate import trajectory_rows

    try:
        whole = json.loads(path.read_bytes())
    except ValueError:
        whole = None  # JSON lines
    if not isinstance(whole, list):
        yield from trajectory_rows(path)
        return
    if len(domains) != 1:
        raise UserError(
            f"{path}: tau-bench's results name no domain; give the one that they are of with --domains"
        )
    for number, row in enumerate(whole):
        origin = f"{path.name}: conversation {number}"
        if not isinstance(row, dict) or "task_id" not in row or not isinstance(row.get("traj"), list):
            yield origin, 'a row without "task_id" and "traj"'
            continue
        trajectory = {"actions": actions_of(row["traj"]), "ended": ended(row["traj"])}
        task = f"{domains[0]}/{row['task_id']}"
        yield origin, {"task": task, "trial": row.get("trial", 0), "trajectory": trajectory}


def actions_of(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The agent's actions in a stored conversation, as tau-bench takes them from messages: the first call of each, or words."""
    actions = []
    for message in messages:
        if message["role"] != "assistant":
            continue
        calls = message.get("tool_calls")
        if calls:
            function = calls[0]["function"]
            actions.append({"name": function["name"], "kwargs": json.loads(function["arguments"])})
        else:
            actions.append({"name": "respond", "kwargs": {"content": message.get("content") or ""}})
    return actions


def ended(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the user said that the conversation is over."""
    last = messages[-1] if messages else {}
    return last.get("role") == "user" and "###STOP###" in (last.get("content") or "")
