"""This project's train step as a contestant of benchmarks/sft.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from contestant import serve
from dcore_jax import load_hf
from dcore_jax.sft.step import Batch, make_train_step
from dcore_jax.training import OptimizerConfig, TrainState, make_optimizer


def setup(spec: dict[str, Any]):
    model = load_hf(spec["model"], dtype=spec["dtype"], param_dtype="float32", remat=spec["remat"])
    optimizer = make_optimizer(OptimizerConfig(), lambda step: spec["learning_rate"])
    graph, params = nnx.split(model)
    state = TrainState(params, optimizer.init(params), None, jnp.zeros((), jnp.int32), jax.random.PRNGKey(0))
    state = jax.device_put(
        state, jax.devices()[0]
    )  # committed, as the step returns it: nothing compiles twice
    del model
    step = jax.jit(make_train_step(graph, optimizer), donate_argnums=0)
    batches = np.load(spec["batches"])
    device = jax.devices()[0]

    def run(i: int) -> tuple[float, int]:
        nonlocal state
        batch = Batch(*(batches[f"{i % spec['steps']}/{name}"][None] for name in Batch._fields))
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics.loss), (device.memory_stats() or {}).get("peak_bytes_in_use", 0)

    return run


if __name__ == "__main__":
    serve(setup)
