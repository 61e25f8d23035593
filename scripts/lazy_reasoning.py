#!/usr/bin/env python
"""How much of a model's reasoning is lazy: the same as dcore lazy."""

import sys

from dcore_jax.cli import main

if __name__ == "__main__":
    main(["lazy", *sys.argv[1:]])
