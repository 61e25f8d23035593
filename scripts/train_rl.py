#!/usr/bin/env python
"""DA-GRPO and its relatives on tool rewards. With no model named, trains the embedded nano Qwen3 in the tool world."""

import sys
from pathlib import Path

from dcore_jax.cli import run_script
from dcore_jax.config import nano_or_paper, parse_command_line
from dcore_jax.mesh import prepare_devices
from dcore_jax.rl.config import RLConfig

DEFAULTS = nano_or_paper(Path(__file__).parents[1] / "configs" / "rl_nano.yaml")


def main() -> None:
    config = parse_command_line(RLConfig, sys.argv[1:], description=__doc__ or "", default_config=DEFAULTS)
    prepare_devices(config.mesh)
    from dcore_jax.rl import summary, train

    print(summary(train(config)))


if __name__ == "__main__":
    run_script(main)
