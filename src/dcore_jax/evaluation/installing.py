"""Packages of benchmarks, installed into folders that only a benchmark's own process has on its path."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcore_jax.errors import UserError


def cache_folder(variable: str, kind: str, name: str) -> Path:
    """`$<variable>/<name>`, or `<the user's cache>/dcore_jax/<kind>/<name>`."""
    if home := os.environ.get(variable):
        return Path(home).expanduser() / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    return cache / "dcore_jax" / kind / name


def install_into(folder: Path, arguments: Sequence[str], name: str) -> None:
    """Installs packages into a folder, with uv where there is one, else with pip.

    Args:
      arguments: packages and options that both installers know.
      name: of the benchmark, for the message.

    Raises:
      UserError: neither installer is there, or the package index does not give them.
    """
    reasons = []
    for installer in _installers():
        command = [*installer, "--target", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(str(error))
            continue
        if done.returncode == 0:
            return
        reasons.append((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][-200:])
    raise UserError(
        f"{name} cannot be installed from the package index: {'; '.join(reasons) or 'neither uv nor pip is there'}"
    )


def _installers() -> Iterator[list[str]]:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv:
        yield [uv, "pip", "install", "--quiet", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        yield [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    elif pip := shutil.which("pip"):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        yield [pip, "install", "--quiet", "--only-binary", ":all:", "--python-version", version]
