#!/usr/bin/env python
"""Packed SFT on a mesh. With no model named, trains the embedded nano Qwen3 on the tool world."""

import sys
from pathlib import Path

from dcore_jax.cli import run_script
from dcore_jax.config import nano_or_paper, parse_command_line
from dcore_jax.mesh import prepare_devices
from dcore_jax.sft.config import SFTConfig

DEFAULTS = nano_or_paper(Path(__file__).parents[1] / "configs" / "sft_nano.yaml")


def main() -> None:
    config = parse_command_line(SFTConfig, sys.argv[1:], description=__doc__ or "", default_config=DEFAULTS)
    prepare_devices(config.mesh)
    import jax

    from dcore_jax.sft import summary, train

    result = train(config)
    if jax.process_index() == 0:
        print(summary(result))


if __name__ == "__main__":
    run_script(main)
