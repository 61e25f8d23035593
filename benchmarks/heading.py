"""The first lines that every benchmark prints: when, on what machine, with which versions, by which command."""

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path


def heading(packages: Sequence[str], accelerator: str | None = None) -> str:
    """Markdown lines; `packages` that are not installed are left out."""
    versions = [f"{package} {found}" for package in packages if (found := version(package))]
    machine = [processor(), f"{os.cpu_count()} cores", f"load {os.getloadavg()[0]:.1f}"]
    if accelerator is not None:
        machine.insert(0, accelerator)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return "  \n".join(
        [
            f"{datetime.date.today()}, {', '.join(machine)}",
            ", ".join([f"Python {platform.python_version()}", *versions]),
            f"`{command}`\n",
        ]
    )


def version(package: str) -> str | None:
    """The installed version of a distribution; None without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
