#!/usr/bin/env python
"""Packed SFT on a mesh: the same as dcore sft."""

import sys

from dcore_jax.cli import main

if __name__ == "__main__":
    main(["sft", *sys.argv[1:]])
