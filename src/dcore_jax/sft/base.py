"""The model that later stages start from where none is given: a nano Qwen3 that SFT has taught the tool world, made once."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from dcore_jax.errors import UserError
from dcore_jax.run_folder import refuse_another_config
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.train import train, trained_decoder
from dcore_jax.weights import export_decoder


def find_base_model(config: SFTConfig, *, output: Path) -> Path:
    """The folder that `base_model` made; raises UserError where it is not found, and trains nothing."""
    folder = Path(config.output or output) / "hf"
    if not folder.exists():
        raise UserError(f"{folder}: no such base model; start this in the folder that the run was started in")
    return folder


def base_model(config: SFTConfig, *, output: Path, mesh: str | None) -> Path:
    """A Hugging Face folder with what the SFT run `config` makes: trained and exported the first time, found the next.

    Args:
      output: the folder of that run where `config.output` is empty. It is continued where it was interrupted.
      mesh: of that run where `config.mesh` is None.

    Raises:
      UserError: the folder holds another run; SIGTERM stopped the training.
    """
    run = Path(config.output) if config.output else output
    config = replace(config, output=str(run), mesh=config.mesh or mesh)
    folder = run / "hf"
    try:
        refuse_another_config(config, run)
        if folder.exists():
            return folder
        print(f"training the base model in {run} (once)")
        stopped = train(config).preempted
    except UserError as error:  # the flags that it speaks of are the base's
        raise UserError(re.sub(r"--(?=[a-z])", "--base.", str(error))) from None
    if stopped:
        raise UserError(f"{run}: the base model's training was stopped; start the same line again to go on")
    decoder, source = trained_decoder(run)
    partial = run / f"hf.partial-{os.getpid()}"
    try:
        export_decoder(decoder, partial, source=source)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
