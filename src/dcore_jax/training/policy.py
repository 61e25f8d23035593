"""The policy of a finished (or running) training run, whichever recipe made it."""

from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from dcore_jax.checkpoint import Checkpoints, abstract
from dcore_jax.dtypes import dtype_of
from dcore_jax.errors import UserError
from dcore_jax.mesh import make_mesh
from dcore_jax.models import Compute, Decoder, abstract_decoder, read_model_config
from dcore_jax.training.run_folder import model_of_run, run_record
from dcore_jax.weights import shardings


def load_policy(
    run: str | Path, step: int | None = None, *, mesh: Mesh | None = None, ema: bool = False
) -> tuple[Decoder, Path]:
    """The decoder of a run's checkpoint, and the Hugging Face folder its weights came from; no optimizer state is read.

    Args:
      run: the folder of an SFT or RL run.
      step: of the checkpoint; the latest by default.
      mesh: to shard the parameters over; the first device by default.
      ema: the moving average instead of the last parameters.

    Raises:
      UserError: no run or no checkpoint in the folder, no moving average kept, a model that is not found again.
    """
    run = Path(run)
    record = run_record(run)
    if record.recipe == "distill":
        raise UserError(f"{run}: a distillation run trains no model; give the folder of an SFT or RL run")
    checkpoints = Checkpoints(run, keep=None)
    found = checkpoints.find(step)
    folder = model_of_run(run, record)
    if ema and not record.ema:
        raise UserError(f"{run}: no moving average was kept (optimizer.ema_decay is 0); leave --ema out")
    dtype, model_config = dtype_of(record.param_dtype), read_model_config(folder)
    graph, shapes = nnx.split(abstract_decoder(model_config, Compute(dtype=dtype, param_dtype=dtype)))
    name = "ema" if ema else "params"
    trees, _ = checkpoints.restore(
        found, {name: abstract(shapes, shardings(model_config, mesh or make_mesh("1")))}
    )
    checkpoints.close()
    return nnx.merge(graph, trees[name]), folder
