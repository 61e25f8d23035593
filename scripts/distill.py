#!/usr/bin/env python
"""Self-distillation: seeds to a verified SFT corpus. With no model named, the embedded nano Qwen3 works in the tool world."""

import sys
from pathlib import Path

from dcore_jax.cli import run_script
from dcore_jax.config import nano_or_paper, parse_command_line
from dcore_jax.distill.config import DistillConfig
from dcore_jax.mesh import prepare_devices

DEFAULTS = nano_or_paper(Path(__file__).parents[1] / "configs" / "distill_nano.yaml")


def main() -> None:
    config = parse_command_line(
        DistillConfig, sys.argv[1:], description=__doc__ or "", default_config=DEFAULTS
    )
    prepare_devices(config.mesh)
    from dcore_jax.distill import distill_seeds, summary

    print(summary(distill_seeds(config)))


if __name__ == "__main__":
    run_script(main)
