"""`dcore export`: a training run's checkpoint as a Hugging Face folder, for transformers and vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcore_jax.cli.options import parse_options
from dcore_jax.dtypes import DTypeName
from dcore_jax.errors import UserError
from dcore_jax.mesh import make_mesh, prepare_devices


@dataclass(frozen=True)
class ExportConfig:
    """A run's checkpoint as a Hugging Face folder."""

    run: str = ""
    """Folder of an SFT or RL run."""
    output: str = ""
    """Folder to write; refused if it exists and is not empty."""
    step: int | None = None
    """Step of the checkpoint; None: the latest."""
    mesh: str | None = None
    """Devices that the weights are read onto: `8` (fsdp), or `data=2,fsdp=4`; None: all devices, one of a CPU."""
    dtype: DTypeName | None = None
    """Type in which the weights are read and written; None: read in the run's, written in each tensor's of the source model."""
    ema: bool = False
    """Export the moving average instead of the last parameters."""


def run(arguments: Sequence[str]) -> None:
    """Parses, exports, prints what was written."""
    config = parse_options(
        ExportConfig,
        arguments,
        description="A run's checkpoint as a Hugging Face folder, for transformers and vLLM.",
        default_config=lambda _: None,
        program="dcore export",
    )
    if not config.run or not config.output:
        raise UserError("give --run <folder of an SFT or RL run> and --output <folder to write>")
    prepare_devices(config.mesh)
    from dcore_jax.training import load_policy
    from dcore_jax.weights import export_decoder

    # float16 cannot hold what a checkpoint may: the export compares its range with the weights as they are.
    dtype = None if config.dtype == "float16" else config.dtype
    decoder, source = load_policy(
        config.run, config.step, mesh=make_mesh(config.mesh), dtype=dtype, ema=config.ema
    )
    out = export_decoder(decoder, config.output, source=source, dtype=config.dtype, progress=True)
    print(f"wrote {decoder.config.num_parameters:,} parameters to {out}")
