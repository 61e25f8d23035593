#!/usr/bin/env python
"""DA-GRPO and its relatives on tool rewards: the same as dcore rl."""

import sys

from dcore_jax.cli import main

if __name__ == "__main__":
    main(["rl", *sys.argv[1:]])
