#!/usr/bin/env python
"""A run's checkpoint as a Hugging Face folder: the same as dcore export."""

import sys

from dcore_jax.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
