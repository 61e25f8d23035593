#!/usr/bin/env python
"""The whole method at nano size, on any machine: the same as dcore demo."""

import sys

from dcore_jax.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
