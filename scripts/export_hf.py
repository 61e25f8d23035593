#!/usr/bin/env python
"""A training run's checkpoint as a Hugging Face folder, for transformers and vLLM."""

import sys
from dataclasses import dataclass
from typing import Literal

import tyro

from dcore_jax.cli import run_script
from dcore_jax.config import refuse_repeated_flags
from dcore_jax.errors import UserError


@dataclass(frozen=True)
class ExportConfig:
    run: str  # the folder of a training run
    output: str  # the folder to write; refused if it exists and is not empty
    step: int | None = None  # of the checkpoint; None: the latest
    dtype: Literal["float32", "bfloat16", "float16"] | None = (
        None  # None: each tensor's own in the source model
    )
    ema: bool = False  # export the moving average instead of the last parameters


def main() -> None:
    refuse_repeated_flags(ExportConfig, sys.argv[1:])
    config = tyro.cli(ExportConfig, description=__doc__)
    from dcore_jax import rl, sft
    from dcore_jax.weights import export_decoder

    if rl.is_rl_run(config.run):
        if config.ema:
            raise UserError(f"{config.run}: an RL run keeps no moving average; leave --ema out")
        decoder, source = rl.trained_decoder(config.run, config.step)
    else:
        decoder, source = sft.trained_decoder(config.run, config.step, ema=config.ema)
    out = export_decoder(decoder, config.output, source=source, dtype=config.dtype, progress=True)
    print(f"wrote {decoder.config.num_parameters:,} parameters to {out}")


if __name__ == "__main__":
    run_script(main)
