"""`dcore eval tau-bench`: the first tau-bench (airline, retail), from a checkout of the user's."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dcore_jax.cli.evaluate.conversations import ConversationOptions, UserOptions
from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError, check_choice

DESCRIPTION = "\n\n".join(
    [
        "tau-bench from the user's own clone of sierra-research/tau-bench, of which nothing is changed; it needs pydantic.",
        "The agent is an engine of ours (--model) or an OpenAI-compatible server (--url); the user a server or a script.",
    ]
)
_DOMAINS = ("airline", "retail")


@dataclass(frozen=True)
class TauBenchConfig(UserOptions, ConversationOptions):
    """tau-bench's tasks, who plays them, and who is the user."""

    checkout: str = ""
    """Folder of a clone of sierra-research/tau-bench."""
    domains: tuple[str, ...] = _DOMAINS
    """airline, retail; of tau-bench's own results in --predictions, which name none: the one that they are of."""
    split: str = "test"
    """test; retail has train and dev too."""
    user_temperature: float = 1.0
    """Of the user's server; tau-bench leaves it at the server's own, mostly 1."""
    max_steps: int = 30
    """Steps of the agent in a conversation, as tau-bench's own agents have it."""
    output: str = "eval/tau-bench"
    """Folder for summary.json, items.jsonl, report.html and trajectories.jsonl; the same command goes on in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
    from dcore_jax.evaluation.harness.evaluate import HarnessRun, play_or_score
    from dcore_jax.evaluation.harness.process import HarnessProcess

    began = time.monotonic()
    user = {} if config.predictions else config.user_settings(config.agent)
    harness = HarnessRun(
        "tau-bench",
        {"domains": list(config.domains), "split": config.split, "count": config.tasks},
        {"user_settings": user, "max_steps": config.max_steps},
        config.trials,
        settings={"split": config.split, "user": config.user_label, **config.settings},
    )
    Path(config.output).mkdir(parents=True, exist_ok=True)
    paths, log = [Path(config.checkout).resolve()], Path(config.output) / "tau-bench.log"
    with HarnessProcess("tau_bench_worker", paths=paths, log=log) as process:
        found = play_or_score(
            process,
            harness,
            config.agent,
            config.output,
            predictions=config.predictions,
            read=partial(stored_rows, domains=config.domains),
            name=config.name,
        )
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
