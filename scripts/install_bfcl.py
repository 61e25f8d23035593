#!/usr/bin/env python
"""Installs bfcl-eval beside numpy 2, each version in a folder of its own."""

import argparse

from dcore_jax.cli import run_command
from dcore_jax.evaluation.bfcl.install import RELEASES, install


def main() -> None:
    """Installs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", help="v3 and v4; both without one")
    parser.add_argument("--folder", help="for one version; else the user's cache, or $DCORE_BFCL_HOME")
    parser.add_argument("--force", action="store_true", help="install anew")
    options = parser.parse_args()
    versions = options.versions or list(RELEASES)
    if options.folder and len(versions) > 1:
        parser.error("--folder takes one version")
    for version in versions:
        print(f"bfcl-eval for {version}: {install(version, options.folder, force=options.force)}")


if __name__ == "__main__":
    run_command(main)
