#!/usr/bin/env python
"""A benchmark for a model or for stored answers: the same as dcore eval."""

import sys

from dcore_jax.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
