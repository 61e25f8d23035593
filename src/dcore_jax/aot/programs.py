"""The recipes' programs as shapes: what runs, made by the recipes' own code from a config and a model's numbers.

A program is built for a mesh (`AotProgram.build`) inside the target's context; nothing is allocated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from dcore_jax.algorithms import PolicyBatch
from dcore_jax.aot.models import model_of
from dcore_jax.engines.native.cache import block_sizes, bucket, zeros
from dcore_jax.engines.native.network import Network, decode, prefill, rollout_weights_abstract
from dcore_jax.engines.native.network import Rows as SlotRows
from dcore_jax.engines.native.sampling import RowSampling
from dcore_jax.mesh import BATCH_AXES, sharding
from dcore_jax.models import ModelConfig
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.learner import row_mode
from dcore_jax.rl.programs import RLPrograms, rl_programs
from dcore_jax.rl.rows import Rows, row_lengths
from dcore_jax.rl.step import Accumulated
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.step import Batch, make_train_step
from dcore_jax.training import TrainSetup
from dcore_jax.training.state import whole_model

_UPDATES = 1000  # optimizer steps of the schedule; a constant in the program, no size depends on it
_STOP_IDS = 8  # columns of the decoder's table of stop tokens
_STEPS_PER_DISPATCH = 32  # of the native engine


@dataclass(frozen=True)
class Built:
    """A jitted function with its arguments' shapes and shardings, and what else lies on the devices while it runs."""

    jitted: Any
    arguments: tuple[Any, ...]
    beside: Mapping[str, PyTree] = field(default_factory=dict)  # by name; no argument of this program


@dataclass(frozen=True)
class AotProgram:
    """A program by name, to be built for a mesh."""

    name: str
    build: Callable[[Mesh], Built]


def device_bytes(tree: PyTree) -> int:
    """Bytes on one device of arrays or shapes that know their sharding; one without a sharding is whole on every device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        where = getattr(leaf, "sharding", None)
        shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
        total += math.prod(shape) * jnp.dtype(leaf.dtype).itemsize
    return total


def sft_program(config: SFTConfig, model: ModelConfig | None = None) -> AotProgram:
    """SFT's training step: the state and one step's packed rows. The model is the config's where none is given."""
    model = model or model_of(config.model)

    def build(mesh: Mesh) -> Built:
        setup = _setup(config, model, mesh)
        step = make_train_step(setup.graph, setup.optimizer, ema_decay=setup.ema_decay)
        shape = (config.accumulation, config.rows // config.accumulation, config.packing.length)
        where = sharding(mesh, (None, "batch", None))
        ids, mask = (_shape(shape, dtype, where) for dtype in (jnp.int32, jnp.bool_))
        weights = None if config.loss.name == "sft" else _shape(shape, jnp.float32, where)
        batch = Batch(ids, ids, ids, mask, mask, weights)
        return Built(
            setup.compile_step(step, "").jitted, (setup.abstract_state, batch, setup.abstract_frozen)
        )

    return AotProgram("SFT step", build)


def rl_score_program(config: RLConfig, model: ModelConfig | None = None) -> AotProgram:
    """The trainer's log-probabilities of one pass of packed rows, with the prompts of a group shared where attention can."""
    model = model or model_of(config.model)

    def build(mesh: Mesh) -> Built:
        setup, programs = _rl(config, model, mesh)
        mask = _shape((config.responses_per_update, config.rollout.max_response), jnp.bool_)
        state = setup.abstract_state
        arguments = (whole_model(state.params, setup.abstract_frozen), _rows(config, setup), mask)
        return Built(
            programs.logprobs.jitted, arguments, {"optimizer": state.optimizer, **_beside(config, setup)}
        )

    return AotProgram("RL score", build)


def rl_update_program(config: RLConfig, model: ModelConfig | None = None) -> AotProgram:
    """One pass of an update: forward, backward, and its gradient added to those before."""
    model = model or model_of(config.model)

    def build(mesh: Mesh) -> Built:
        setup, programs = _rl(config, model, mesh)
        state, policy = setup.abstract_state, _policy(config, programs, setup)
        accumulated = _accumulated(programs, setup)
        denominator = _shape((), jnp.float32, setup.replicated)
        rows = _rows(config, setup)
        arguments = (state.params, accumulated, rows, policy, denominator, setup.abstract_frozen)
        return Built(
            programs.accumulate.jitted, arguments, {"optimizer": state.optimizer, **_beside(config, setup)}
        )

    return AotProgram("RL update", build)


def rl_finish_program(config: RLConfig, model: ModelConfig | None = None) -> AotProgram:
    """The optimizer step at the end of an update."""
    model = model or model_of(config.model)

    def build(mesh: Mesh) -> Built:
        setup, programs = _rl(config, model, mesh)
        arguments = (setup.abstract_state, _accumulated(programs, setup))
        return Built(programs.finish.jitted, arguments, {**_frozen(setup), **_beside(config, setup)})

    return AotProgram("RL optimizer step", build)


def prefill_program(config: RLConfig, model: ModelConfig | None = None) -> AotProgram:
    """The native engine's prefill of the longest prompts, one on each shard of the slots."""
    model = model or model_of(config.model)

    def build(mesh: Mesh) -> Built:
        setup = _setup(config, model, mesh)
        network = _network(setup)
        weights = rollout_weights_abstract(network, mesh)
        tokens = _shape(
            (_shards(mesh), bucket(config.rollout.max_prompt)), jnp.int32, sharding(mesh, (None, None))
        )
        return Built(prefill, (network, weights, tokens), _while_sampling(config, setup))

    return AotProgram("prefill", build)


def decode_program(config: RLConfig, model: ModelConfig | None = None) -> AotProgram:
    """The native engine's decoding of all slots, with a cache that holds the longest prompt and response."""
    model = model or model_of(config.model)

    def build(mesh: Mesh) -> Built:
        setup = _setup(config, model, mesh)
        network, slots = _network(setup), config.engine.slots

        def per_slot(dtype: Any, *rest: int) -> Any:
            return _shape((slots, *rest), dtype, setup.replicated)

        numbers = per_slot(jnp.int32)
        sampling = RowSampling(per_slot(jnp.uint32, 2), per_slot(jnp.float32), per_slot(jnp.float32), numbers)
        arguments = (
            network,
            _STEPS_PER_DISPATCH,
            rollout_weights_abstract(network, mesh),
            engine_cache(config, model, mesh),
            SlotRows(*(numbers,) * 4),
            sampling,
            per_slot(jnp.int32, _STOP_IDS),
            _shape((), jnp.int32, setup.replicated),
        )
        return Built(decode, arguments, _while_sampling(config, setup))

    return AotProgram("decode", build)


def engine_cache(config: RLConfig, model: ModelConfig, mesh: Mesh) -> PyTree:
    """The native engine's cache at its largest: every slot holds the longest prompt and response."""
    sizes = tuple(block_sizes(config.rollout.max_prompt + config.rollout.max_response))
    dtype = config.compute.compute().dtype
    shapes = jax.eval_shape(partial(zeros, model, config.engine.slots, sizes, dtype))
    where = NamedSharding(mesh, P(BATCH_AXES, "tensor", None, None))
    return jax.tree.map(lambda x: _shape(x.shape, x.dtype, where), shapes)


def _setup(config: SFTConfig | RLConfig, model: ModelConfig, mesh: Mesh) -> TrainSetup:
    return TrainSetup(
        Path(),
        mesh,
        compute=config.compute,
        optimizer=config.optimizer,
        updates=_UPDATES,
        seed=config.seed,
        lora=config.lora,
        model_config=model,
    )


def _rl(config: RLConfig, model: ModelConfig, mesh: Mesh) -> tuple[TrainSetup, RLPrograms]:
    setup = _setup(config, model, mesh)
    return setup, rl_programs(config, config.running_algorithm(), setup)


def _network(setup: TrainSetup) -> Network:
    compute = replace(setup.compute, param_dtype=setup.compute.dtype, remat="none")
    return Network(setup.model_config, compute)


def _beside(config: RLConfig, setup: TrainSetup) -> dict[str, PyTree]:
    """What an RL run holds on the devices while it trains, beside the state."""
    held: dict[str, PyTree] = {}
    # With LoRA the reference is the base with B = 0: no second copy.
    if config.running_algorithm().needs_reference and not config.reference_on_host and not setup.lora:
        held["reference"] = setup.abstract_state.params
    # With staleness it samples at the same time; else it has given its memory back.
    if config.engine.name == "native" and config.rollout.staleness:
        held["engine weights"] = rollout_weights_abstract(_network(setup), setup.mesh)
        held["engine cache"] = engine_cache(config, setup.model_config, setup.mesh)
    return held


def _while_sampling(config: RLConfig, setup: TrainSetup) -> dict[str, PyTree]:
    """What an RL run holds on the devices while its engine samples."""
    held = _beside(replace(config, rollout=replace(config.rollout, staleness=0)), setup)
    state = setup.abstract_state
    return {"parameters": state.params, "optimizer": state.optimizer, **_frozen(setup), **held}


def _frozen(setup: TrainSetup) -> dict[str, PyTree]:
    """The base of a LoRA run, beside programs that it is no argument of."""
    return {} if setup.abstract_frozen is None else {"frozen base": setup.abstract_frozen}


def _rows(config: RLConfig, setup: TrainSetup) -> Rows:
    """A pass at its largest: rows of the longest length, every position of which has a slot."""
    where = sharding(setup.mesh, ("batch", None))
    ids = _shape((_shards(setup.mesh), row_lengths(config.row_length)[-1]), jnp.int32, where)
    shared = row_mode(config, setup.compute, setup.model_config.head_dim) == "shared"
    return Rows(ids, ids, ids, ids if shared else None, ids, ids, ids)


def _policy(config: RLConfig, programs: RLPrograms, setup: TrainSetup) -> PolicyBatch:
    count, tokens = config.responses_per_update, config.rollout.max_response
    algorithm = config.running_algorithm()
    each, numbers = _shape((count,), jnp.float32), _shape((count, tokens), jnp.float32)
    by_entropy = algorithm.region_weighting in ("inverse", "collision")
    shapes = jax.eval_shape(
        programs.policy_batch,
        each,
        _shape((count,), jnp.int32),
        _shape((count, tokens), jnp.bool_),
        numbers,
        correct=_shape((count,), jnp.bool_),
        old_entropy=numbers,
        ref_logprobs=numbers if algorithm.needs_reference else None,
        engine_logprobs=numbers,
        regions=_shape((count, tokens), jnp.int8),
        region_entropy=_shape((5,), jnp.float32) if by_entropy else None,
        progress=_shape((), jnp.float32),
    )
    return _everywhere(shapes, setup)


def _accumulated(programs: RLPrograms, setup: TrainSetup) -> Accumulated:
    shapes = jax.eval_shape(programs.nothing, setup.abstract_state.params)
    gradient = jax.tree.map(
        lambda x, where: _shape(x.shape, x.dtype, where), shapes.gradient, setup.state_sharding.params
    )
    return Accumulated(_everywhere(shapes.loss, setup), _everywhere(shapes.sums, setup), gradient)


def _everywhere(tree: PyTree, setup: TrainSetup) -> Any:
    return jax.tree.map(lambda x: _shape(x.shape, x.dtype, setup.replicated), tree)


def _shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _shape(shape: tuple[int, ...], dtype: Any, where: Any = None) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
