"""Options that the benchmarks of conversations share: tau2, tau-bench and ToolTalk."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.agent_config import AGENT_ALIASES, AgentConfig


@dataclass(frozen=True)
class ConversationOptions:
    """Which conversations are played, and by whom."""

    ALIASES: ClassVar = AGENT_ALIASES

    tasks: int | None = None
    """Only the first tasks of each domain or set; None: all."""
    trials: int = 1
    """Times that each task is played; pass^k for k up to it."""
    predictions: tuple[str, ...] = ()
    """Stored trajectories to score instead: trajectories.jsonl of a run, or the benchmark's own results where it writes any."""
    name: str = ""
    """What the model is called in the summary."""
    output: str = "eval/conversations"
    """Folder for summary.json, items.jsonl, report.html and trajectories.jsonl; the same command goes on in it."""
    agent: AgentConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        for name in ("trials", "max_steps", "max_errors"):
            if getattr(self, name, 1) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def settings(self) -> dict[str, Any]:
        """What the page says of how the agent was asked."""
        prompting = self.agent.prompting
        return {
            "trials": self.trials,
            "no-think mode": prompting.no_think,
            "decomposed prompting": prompting.decompose,
        }


@dataclass(frozen=True)
class UserOptions:
    """Who the user is that a conversation is played with."""

    user: str = ""
    """Address of the user simulator's OpenAI-compatible server, a JSON file of turns by task, `silent`, in tau2 `reference`."""
    user_model: str = ""
    """Name that the user's server knows its model by."""
    user_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key of the user's server."""
    user_temperature: float = 0.0
    """Of the user's server."""

    @property
    def user_label(self) -> str:
        """What the page calls the user."""
        return self.user_model or self.user or "of the scripted player"

    def user_settings(self, agent: AgentConfig) -> dict[str, Any]:
        """What the worker is told of the user.

        Raises:
          UserError: no user for a model, or a script that cannot be read.
        """
        user = self.user or {"reference": "reference", "empty": "silent"}.get(agent.name, "")
        if not user:
            raise UserError(
                "no user: give --user <server's address> --user-model NAME, a script of turns (JSON), or `silent`"
            )
        if user in ("reference", "silent"):
            return {"kind": user}
        if user.startswith(("http://", "https://")):
            if not self.user_model:
                raise UserError(
                    "--user is a server and needs --user-model: the name that it knows its model by"
                )
            return {
                "kind": "server",
                "url": user,
                "model": self.user_model,
                "key": os.environ.get(self.user_key_variable, ""),
                "temperature": self.user_temperature,
            }
        return {"kind": "script", "turns": _script(user)}


@dataclass(frozen=True)
class InstalledOptions:
    """Where the benchmark's package is."""

    folder: str = ""
    """Where the benchmark's package is installed; empty: the user's cache, or $DCORE_BENCHMARKS_HOME."""
    install: bool = False
    """Install the package from PyPI first, where it is not there yet."""

    def installed(self, benchmark: str) -> Path:
        """The package's folder; installs into it where that is asked for.

        Raises:
          UserError: it is not there, or cannot be installed.
        """
        from dcore_jax.evaluation.harness.install import install, installed_folder

        if self.install:
            install(benchmark, self.folder or None)
        return installed_folder(benchmark, self.folder or None)


def _script(path: str) -> Mapping[str, Any]:
    try:
        turns = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--user {path} is no address and no JSON file of turns by task: {error}") from None
    if not isinstance(turns, dict) or not all(isinstance(found, list) for found in turns.values()):
        raise UserError(
            f'{path}: a script is {{"airline/0" or "*": [turns]}}, each turn a text or {{"calls": [...]}}'
        )
    return turns
