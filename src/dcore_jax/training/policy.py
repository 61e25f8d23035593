"""The policy of a finished (or running) training run, whichever recipe made it."""

from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from dcore_jax.checkpoint import Checkpoints, abstract
from dcore_jax.config import config_from_dict
from dcore_jax.dtypes import dtype_of
from dcore_jax.errors import UserError
from dcore_jax.lora import LoraConfig, adapted_decoder, lora_shardings, merged_parameters, partition
from dcore_jax.mesh import make_mesh
from dcore_jax.models import Compute, Decoder, ModelConfig, abstract_decoder, read_model_config
from dcore_jax.training.run_folder import RunRecord, model_of_run, run_record
from dcore_jax.weights import shardings
from dcore_jax.weights.magnitude import check_finite


def load_policy(
    run: str | Path,
    step: int | None = None,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    ema: bool = False,
) -> tuple[Decoder, Path]:
    """The decoder of a run's checkpoint, and the Hugging Face folder its weights came from; no optimizer state is read.

    Each device reads its own shards, in `dtype`: bfloat16 takes half the memory of a float32 checkpoint. A LoRA
    run's adapters are merged into the base as it is loaded, in float32 and before the cast to `dtype`; a base in nf4 stays
    rounded to it, as it was trained on.

    Args:
      run: the folder of an SFT or RL run.
      step: of the checkpoint; the latest by default.
      mesh: to shard the parameters over; the first device by default.
      dtype: of the decoder, "float32", "bfloat16" or "float16"; by default that of the checkpoint.
      ema: the moving average instead of the last parameters.

    Raises:
      UserError: no run or no checkpoint in the folder, no moving average kept, a model that is not found again, or a
        weight that is not finite in `dtype`.
    """
    run, mesh = Path(run), mesh or make_mesh("1")
    record = _trained(run)
    folder, chosen = model_of_run(run, record), dtype_of(dtype or record.param_dtype)
    model_config = read_model_config(folder)
    graph, shapes = nnx.split(abstract_decoder(model_config, Compute(dtype=chosen, param_dtype=chosen)))
    if record.lora is None:
        params = _restored(run, record, step, abstract(shapes, shardings(model_config, mesh)), ema)
    else:
        adapters, lora = _adapters(run, record, model_config, step, mesh, ema)
        params = merged_parameters(folder, model_config, adapters, lora, mesh, dtype=chosen)
    decoder = nnx.merge(graph, params)
    if dtype == "float16":
        check_finite(decoder, where=f"{run}: in float16, whose largest number is 65,504")
    return decoder, folder


def load_adapters(
    run: str | Path, step: int | None = None, *, mesh: Mesh | None = None, ema: bool = False
) -> tuple[nnx.State, LoraConfig, Path]:
    """The adapters of a LoRA run's checkpoint, its options, and the Hugging Face folder of its base.

    Args:
      run, step, mesh, ema: as in `load_policy`.

    Raises:
      UserError: as `load_policy`; a run that trained all parameters.
    """
    run = Path(run)
    record = _trained(run)
    if record.lora is None:
        raise UserError(f"{run}: a run without adapters (lora.rank is 0); leave --adapter out")
    folder = model_of_run(run, record)
    adapters, lora = _adapters(run, record, read_model_config(folder), step, mesh or make_mesh("1"), ema)
    return adapters, lora, folder


def _trained(run: Path) -> RunRecord:
    """The record of a run that trains a model."""
    record = run_record(run)
    if record.recipe == "distill":
        raise UserError(f"{run}: a distillation run trains no model; give the folder of an SFT or RL run")
    return record


def _adapters(
    run: Path, record: RunRecord, config: ModelConfig, step: int | None, mesh: Mesh, ema: bool
) -> tuple[nnx.State, LoraConfig]:
    lora = config_from_dict(LoraConfig, record.lora)
    shapes, _ = partition(nnx.state(adapted_decoder(config, Compute(), lora)))
    return _restored(run, record, step, abstract(shapes, lora_shardings(config, mesh, shapes)), ema), lora


def _restored(run: Path, record: RunRecord, step: int | None, shapes: Any, ema: bool) -> Any:
    """What a checkpoint holds of the parameters that were trained."""
    checkpoints = Checkpoints(run, keep=None)
    found = checkpoints.find(step)
    if ema and not record.ema:
        raise UserError(f"{run}: no moving average was kept (optimizer.ema_decay is 0); leave --ema out")
    name = "ema" if ema else "params"
    trees, _ = checkpoints.restore(found, {name: shapes})
    checkpoints.close()
    return trees[name]
