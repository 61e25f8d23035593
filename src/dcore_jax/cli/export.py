"""`dcore export`: a training run's checkpoint as a Hugging Face folder, for transformers and vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    adapter: bool = False
    """Export a LoRA run's adapter alone, in the format of peft; without it the adapter is merged into the model."""


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

    if config.adapter:
        _export_adapter(config)
        return
    # float16 cannot hold what a checkpoint may: the export compares its range with the weights as they are.
    dtype = None if config.dtype == "float16" else config.dtype
    decoder, source = load_policy(
        config.run, config.step, mesh=make_mesh(config.mesh), dtype=dtype, ema=config.ema
    )
    out = export_decoder(decoder, config.output, source=source, dtype=config.dtype, progress=True)
    print(f"wrote {decoder.config.num_parameters:,} parameters to {out}")


def _export_adapter(config: ExportConfig) -> None:
    from dcore_jax.lora import count, export_adapter
    from dcore_jax.models import read_model_config
    from dcore_jax.training.policy import load_adapters
    from dcore_jax.training.run_folder import run_record

    if config.dtype not in (None, "float32"):
        raise UserError(
            f"--dtype {config.dtype}: an adapter is written as it was trained, in float32; leave --dtype out"
        )
    adapters, lora, source = load_adapters(
        config.run, config.step, mesh=make_mesh(config.mesh), ema=config.ema
    )
    named = run_record(Path(config.run)).model  # as the user named it; a folder inside the run by its path
    base = str(source) if (Path(config.run) / named).exists() else named
    out = export_adapter(read_model_config(source), adapters, lora, config.output, base=base)
    print(f"wrote an adapter of {count(adapters):,} parameters for {base} to {out}")
    if lora.quantize == "nf4":
        print(
            "it was trained on the base in nf4: load the base in 4 bits too (nf4, blocks of 64), or export it merged"
        )
