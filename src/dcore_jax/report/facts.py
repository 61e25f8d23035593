"""What the header of a run's page says: model, dates, time, hardware, commit, command; and its settings as rows."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from dcore_jax.report.trajectory import shorten

_PACKAGE = Path(__file__).parents[1]


def run_facts(
    model: str,
    *,
    began: str = "",
    seconds: int | float | None = None,
    further: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The header's names and values, without those that are not known.

    Args:
      began: when the run was first started, ISO 8601.
      seconds: what it took, over all its starts.
      further: shown after the model: algorithm, data, hardware.
    """
    facts = {"model": model, **(further or {})}
    if began:
        facts["started"] = began.replace("T", " ")[:16]
    facts["written"] = date.today().isoformat()
    if seconds is not None:
        facts["time"] = duration(seconds)
    facts["version"] = _version()
    facts["command"] = command_line()
    return {name: value for name, value in facts.items() if value}


def duration(seconds: int | float) -> str:
    """A time in words: `1.25 h`, `3 min 20 s`, `4.2 s`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s"


def command_line() -> str:
    """The command that this process was started with, if it is one of this project's; empty in a notebook or a test."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else ""
    if name == "dcore":
        return shlex.join(["dcore", *sys.argv[1:]])
    if Path(sys.argv[0]).parent.name == "scripts":
        return shlex.join(["python", f"scripts/{name}", *sys.argv[1:]])
    return ""


@cache
def code_commit() -> str:
    """The commit of this package's sources, with `+ changes` where they differ from it; empty where they are in no git."""
    if not _git(
        "ls-files", "errors.py"
    ):  # an installed package may lie inside a repository that is not its own
        return ""
    commit = _git("rev-parse", "--short=12", "HEAD")
    return f"{commit} + changes" if commit and _git("status", "--porcelain", "--", ".") else commit


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A config's values by dotted name."""
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += flat_settings(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", shorten(str(value))))
    return rows


def _version() -> str:
    from dcore_jax import __version__

    commit = code_commit()
    return f"dcore_jax {__version__}" + (f", commit {commit}" if commit else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=_PACKAGE,
            capture_output=True,
            text=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
