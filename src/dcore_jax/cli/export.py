"""`dcore export`: a training run's checkpoint as a Hugging Face folder, for transformers and vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcore_jax.cli.options import parse_options
from dcore_jax.dtypes import DTypeName
from dcore_jax.errors import UserError


@dataclass(frozen=True)
class ExportConfig:
    """A run's checkpoint as a Hugging Face folder."""

    run: str = ""
    """Folder of an SFT or RL run."""
    output: str = ""
    """Folder to write; refused if it exists and is not empty."""
    step: int | None = None
    """Step of the checkpoint; None: the latest."""
    dtype: DTypeName | None = None
    """Type of the tensors; None: each tensor's own in the source model."""
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
    from dcore_jax.training import load_policy
    from dcore_jax.weights import export_decoder

    decoder, source = load_policy(config.run, config.step, ema=config.ema)
    out = export_decoder(decoder, config.output, source=source, dtype=config.dtype, progress=True)
    print(f"wrote {decoder.config.num_parameters:,} parameters to {out}")
