#!/usr/bin/env python
"""Installs benchmarks from PyPI, each in a folder of its own that only its process has on its path."""

import argparse
from functools import partial

from dcore_jax.cli import run_command
from dcore_jax.errors import check_choice
from dcore_jax.evaluation.bfcl.install import RELEASES
from dcore_jax.evaluation.bfcl.install import install as install_bfcl
from dcore_jax.evaluation.harness.install import PACKAGES
from dcore_jax.evaluation.harness.install import install as install_harness

# Name -> what installs it, into its folder in the user's cache unless one is given.
INSTALLERS = {
    **{f"bfcl-{version}": partial(install_bfcl, version) for version in RELEASES},
    **{name: partial(install_harness, name) for name in PACKAGES},
}


def main() -> None:
    """Installs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", help=f"{', '.join(INSTALLERS)}; all without one")
    parser.add_argument(
        "--folder", help="for one benchmark; else the user's cache, $DCORE_BFCL_HOME, $DCORE_BENCHMARKS_HOME"
    )
    parser.add_argument("--force", action="store_true", help="install anew")
    options = parser.parse_args()
    names = options.benchmarks or list(INSTALLERS)
    if options.folder and len(names) > 1:
        parser.error("--folder takes one benchmark")
    for name in names:
        check_choice("benchmark", name, INSTALLERS)
    for name in names:
        print(f"{name}: {INSTALLERS[name](options.folder, force=options.force)}")


if __name__ == "__main__":
    run_command(main)
