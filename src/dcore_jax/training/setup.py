"""A model, its optimizer and where every array of them lies on the mesh: what a recipe's compiled steps share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from dcore_jax.checkpoint import abstract
from dcore_jax.models import ModelConfig, abstract_decoder, read_model_config
from dcore_jax.training.compilation import Program
from dcore_jax.training.config import ComputeConfig, OptimizerConfig
from dcore_jax.training.optimizer import float32, learning_rate_schedule, make_optimizer, with_float32_masters
from dcore_jax.training.state import TrainState
from dcore_jax.weights import load_decoder, shardings


class TrainSetup:
    """The parts of a training program that no step changes.

    Args:
      folder: Hugging Face folder of the model.
      mesh: of parameters, moments and batches.
      updates: optimizer steps of the whole run, which the learning rate schedule is stretched over.
      seed: of the state's random key.
      model_config: the model's numbers, where there is no folder to read them from; such a setup loads no parameters.

    Attributes:
      model_config, graph: the model's numbers and its NNX graph; `nnx.merge(graph, params)` is the model.
      optimizer, schedule: of optax.
      state_sharding: a TrainState of shardings, one for each array. `replicated`: that of scalars.
      abstract_state: a TrainState of shapes with shardings, to restore a checkpoint into.
    """

    def __init__(
        self,
        folder: Path,
        mesh: Mesh,
        *,
        compute: ComputeConfig,
        optimizer: OptimizerConfig,
        updates: int,
        seed: int,
        model_config: ModelConfig | None = None,
    ):
        self.folder, self.mesh, self.seed = folder, mesh, seed
        self.compute = compute.compute()
        self.model_config = model_config or read_model_config(folder)
        self.graph, shapes = nnx.split(abstract_decoder(self.model_config, self.compute))
        self.schedule = learning_rate_schedule(optimizer, updates)
        self.optimizer = make_optimizer(optimizer, self.schedule)
        if self.compute.param_dtype != jnp.float32:
            self.optimizer = with_float32_masters(self.optimizer)
        self.ema_decay = optimizer.ema_decay
        self._offload = optimizer.offload
        self.replicated: Any = NamedSharding(mesh, P())
        state = jax.eval_shape(self.new_state, shapes)
        self.state_sharding = self._state_sharding(state)
        self.abstract_state = abstract(state, self.state_sharding)

    def _state_sharding(self, state: TrainState) -> TrainState:
        params = shardings(self.model_config, self.mesh)
        # Moments and masters lie where their parameters lie; counters of the optimizer lie everywhere.
        moments = optax.tree.map_params(
            self.optimizer,
            lambda _, sharding: sharding.with_memory_kind("pinned_host") if self._offload else sharding,
            state.optimizer,
            params,
            transform_non_params=lambda _: self.replicated,
        )
        return TrainState(
            params=params,
            optimizer=moments,
            ema=params if self.ema_decay else None,
            step=self.replicated,
            rng=self.replicated,
        )

    def new_state(self, params: PyTree) -> TrainState:
        """The state before the first step; pure."""
        ema = jax.tree.map(jnp.copy, float32(params)) if self.ema_decay else None
        return TrainState(
            params,
            self.optimizer.init(params),
            ema,
            jnp.zeros((), jnp.int32),
            jax.random.PRNGKey(self.seed),
        )

    def load_params(self, *, progress: bool = False) -> PyTree:
        """The parameters of `folder`, sharded over the mesh; raises UserError for what is wrong with the folder."""
        decoder = load_decoder(self.folder, compute=self.compute, mesh=self.mesh, progress=progress)
        return nnx.split(decoder)[1]

    def initial_state(self, params: PyTree) -> TrainState:
        """The state before the first step, sharded; `params` are given away (donated)."""
        make = jax.jit(self.new_state, out_shardings=self.state_sharding, donate_argnums=0)
        return make(params)

    def compile_step(self, step: Callable[..., tuple[TrainState, Any]], name: str) -> Program:
        """`(state, batch) -> (state, metrics)` jitted, the state donated; its first call says that it compiles.

        `name` is what the message calls it, as "the training step".
        """
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.state_sharding, self.replicated))
        return Program(jitted, name)
