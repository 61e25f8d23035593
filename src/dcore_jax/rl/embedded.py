"""The embedded default's start: a nano Qwen3 that SFT has taught the tool world, made once in a folder."""

import os
import shutil
from pathlib import Path

from dcore_jax.errors import UserError
from dcore_jax.rl.config import NANO, TOOLWORLD, RLConfig
from dcore_jax.run_folder import refuse_another_config
from dcore_jax.sft import SFTConfig, train, trained_decoder
from dcore_jax.sft.config import CheckpointConfig, ComputeConfig, NanoConfig, OptimizerConfig, PackingConfig
from dcore_jax.weights import export_decoder


def warm_start(config: RLConfig, output: Path) -> Path:
    """A Hugging Face folder with the warm-started model; trained the first time, found the next.

    The folder also holds the SFT run itself, which continues where it was interrupted.
    """
    settings = config.warm_start
    run = Path(settings.folder) if settings.folder else output / "warm_start"
    sft = SFTConfig(
        model=NANO,
        data=(TOOLWORLD,),
        output=str(run),
        mesh=config.mesh,
        steps=settings.steps,
        epochs=settings.epochs,
        rows=settings.rows,
        seed=config.seed,
        packing=PackingConfig(length=settings.length),
        optimizer=OptimizerConfig(learning_rate=settings.learning_rate),
        compute=ComputeConfig(dtype="float32", remat="none"),
        checkpoint=CheckpointConfig(every=100),
        nano=NanoConfig(settings.hidden, settings.layers, settings.tasks, settings.subtasks, settings.kinds),
    )
    folder = run / "hf"
    if folder.exists():
        refuse_another_config(sft, run)
        return folder
    if train(sft).preempted:
        raise UserError(f"{run}: the warm start was stopped; start the same line again to go on")
    decoder, source = trained_decoder(run)
    partial = run / f"hf.partial-{os.getpid()}"
    try:
        export_decoder(decoder, partial, source=source)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
