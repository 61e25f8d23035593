"""The nano model that other recipes start from: an ordinary SFT run on the tool world, made when it is first needed."""

from dataclasses import replace
from pathlib import Path

from dcore_jax.atomic import atomic_folder
from dcore_jax.config import find_config, read_config
from dcore_jax.errors import UserError
from dcore_jax.progress import log
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.run import RECIPE, train
from dcore_jax.training import load_policy
from dcore_jax.training.run_folder import check_config_unchanged
from dcore_jax.weights import export_decoder


def base_model(name: str, *, mesh: str | None = None, output: Path | None = None) -> Path:
    """The Hugging Face folder of what an SFT config makes: trained and exported into its run folder once, found after that.

    Args:
      name: of a config that travels with the package, as `base_nano`, or a YAML file.
      mesh: of the run where the config names none.
      output: its run folder, in place of the config's.

    Raises:
      UserError: no such config; its run folder holds another run; the training was stopped by a signal.
    """
    path = find_config(name)
    config = read_config(SFTConfig, path)
    run = output or Path(config.output)
    config = replace(config, mesh=config.mesh or mesh, output=str(run))
    hint = f"remove {run}, or name another `output` in a copy of {path.name}"
    check_config_unchanged(config, run, RECIPE, hint=hint)
    folder = run / "hf"
    if folder.exists():
        return folder
    log(f"base model: training {path.stem} in {run} (once)")
    if train(config).preempted:
        raise UserError(f"{run}: the base model's training was stopped; start the same line again to go on")
    decoder, source = load_policy(run)
    with atomic_folder(folder) as unfinished:
        export_decoder(decoder, unfinished, source=source)
    return folder
