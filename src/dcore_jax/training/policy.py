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

    Each device reads its own shards, in `dtype`: bfloat16 takes half the memory of a float32 checkpoint.

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
    run = Path(run)
    record = run_record(run)
    if record.recipe == "distill":
        raise UserError(f"{run}: a distillation run trains no model; give the folder of an SFT or RL run")
    checkpoints = Checkpoints(run, keep=None)
    found = checkpoints.find(step)
    folder = model_of_run(run, record)
    if ema and not record.ema:
        raise UserError(f"{run}: no moving average was kept (optimizer.ema_decay is 0); leave --ema out")
    model_config, chosen = read_model_config(folder), dtype_of(dtype or record.param_dtype)
    graph, shapes = nnx.split(abstract_decoder(model_config, Compute(dtype=chosen, param_dtype=chosen)))
    name = "ema" if ema else "params"
    trees, _ = checkpoints.restore(
        found, {name: abstract(shapes, shardings(model_config, mesh or make_mesh("1")))}
    )
    checkpoints.close()
    decoder = nnx.merge(graph, trees[name])
    if dtype == "float16":
        check_finite(decoder, where=f"{run}: in float16, whose largest number is 65,504")
    return decoder, folder
