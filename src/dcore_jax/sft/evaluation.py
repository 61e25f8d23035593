"""Evaluation while an SFT run trains: the loss on held-out data, and what `--eval` names, every so many steps."""

from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcore_jax.data import load_samples
from dcore_jax.data.chat_template import chat_template
from dcore_jax.data.notation import template_notation
from dcore_jax.data.packing import packed_batches
from dcore_jax.data.store import SampleStore
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.engines.native import NativeEngine
from dcore_jax.errors import UserError
from dcore_jax.mesh import BATCH_AXES, put_global
from dcore_jax.nano import embedded_data
from dcore_jax.player.evaluators import EvaluationLog, evaluators_of
from dcore_jax.player.model import PlayableModel
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.step import Batch, loss_sum, predicted_weights
from dcore_jax.toolworld.spec import is_spec
from dcore_jax.training import TrainSetup
from dcore_jax.weights import stop_token_ids

_SLOTS = 32  # sequences decoded at the same time


class Evaluation:
    """What is evaluated, and when.

    Args:
      began: the date and time that the chat template may write.
      start: the step at which this start of the run begins.

    Raises:
      UserError: held-out data that cannot be read, an unknown evaluator, several processes.
    """

    def __init__(self, config: SFTConfig, setup: TrainSetup, output: Path, began: datetime, start: int):
        self._config, self._setup = config, setup
        if config.eval and jax.process_count() > 1:
            raise UserError(
                "--eval plays in one process; leave it out, or start one process with all devices"
            )
        tokenizer = load_tokenizer(setup.folder)
        self._template = chat_template(tokenizer, config.chat_template_kwargs, began)
        self._ends = stop_token_ids(setup.folder, tokenizer)
        evaluators = evaluators_of(config.eval)
        self._store = _held_out(config, setup, self._template, output) if config.eval_data else None
        self._log = EvaluationLog(output, evaluators, start) if jax.process_index() == 0 else None
        self._plays = bool(evaluators)
        self._best: int | None = None
        if self._log is not None and self._log.best is not None:
            self._best = self._log.best.step
        self._losses = jax.jit(
            lambda params, batch: _sums(setup.graph, params, batch), out_shardings=setup.replicated
        )

    @property
    def best_step(self) -> int | None:
        """The step whose checkpoint is kept."""
        return self._best

    def due(self, step: int, total: int) -> bool:
        """Whether this step is followed by an evaluation."""
        return step == total or step % self._config.eval_every == 0

    def run(self, step: int, params: Any) -> bool:
        """Evaluates; whether this step is the best so far."""
        loss = None if self._store is None else self._held_out_loss(self._store, params)
        if self._log is None:
            return False
        model = self._playable(params) if self._plays else None
        try:
            better = self._log.run(step, model, loss)
        finally:
            if model is not None:
                model.engine.close()
        if better:
            self._best = step
        return better

    def close(self) -> None:
        """Closes its files."""
        if self._log is not None:
            self._log.close()

    def _held_out_loss(self, store: SampleStore, params: Any) -> float:
        config, mesh = self._config, self._setup.mesh
        total = np.zeros(2)
        batches = packed_batches(
            store, rows=config.rows, pack_length=config.packing.length, seed=0, epochs=1, prefetch=0
        )
        for packed in batches:
            micro = jax.tree.map(lambda x: x.reshape(config.accumulation, -1, x.shape[-1]), tuple(packed))
            batch = Batch(*put_global(mesh, (None, "batch", None), micro))
            total += np.array(jax.device_get(self._losses(params, batch)), np.float64)
        return float(total[0] / max(total[1], 1))

    def _playable(self, params: Any) -> PlayableModel:
        setup, config = self._setup, self._setup.model_config
        parts = int(np.prod([setup.mesh.shape[axis] for axis in BATCH_AXES]))
        engine = NativeEngine(
            nnx.merge(setup.graph, params),
            slots=-(-_SLOTS // parts) * parts,
            eos_token_ids=sorted(self._ends),
            mesh=setup.mesh,
        )
        notation, length = template_notation(self._template), config.context_length
        name = setup.folder.name
        return PlayableModel(
            name, setup.folder, engine, self._template, self._ends, notation, config.vocab_size, length
        )


def _held_out(config: SFTConfig, setup: TrainSetup, template: Any, output: Path) -> SampleStore:
    files = [
        str(embedded_data(output / "embedded", name, config.seed)) if is_spec(name) else name
        for name in config.eval_data
    ]
    length = min(config.packing.length, setup.model_config.context_length)
    store, _ = load_samples(
        files, template, mask=config.loss_mask, max_length=length, strict=config.strict, progress=False
    )
    return store


def _sums(graph: Any, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The summed loss of a batch, and what it is divided by."""
    losses = jax.lax.map(lambda micro: loss_sum(graph, params, micro), batch)
    return losses.sum(), jnp.maximum(predicted_weights(batch, batch.denominator_mask).sum(), 0.0)
