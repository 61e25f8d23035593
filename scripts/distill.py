#!/usr/bin/env python
"""Self-distillation: the same as dcore distill."""

import sys

from dcore_jax.cli import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
