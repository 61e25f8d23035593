"""The SFT run: files in, a checkpointed and resumable run folder out. The order of the calls is the order of the file.

<output>/config.yaml       the effective config           metrics.jsonl   one object a step
         checkpoints/      parameters, optimizer, data    data.json       what was read, what was left out
         report.html       the run for reading            embedded/       the nano model and data, where asked for
         loss.png          the curve                      evaluations.jsonl, best.json, evaluation_samples.jsonl
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dcore_jax.checkpoint import Checkpoints
from dcore_jax.config import config_to_dict
from dcore_jax.data.packing import PackedBatch, WeightedBatch
from dcore_jax.data.store import SampleStore
from dcore_jax.errors import UserError
from dcore_jax.lora import check_lora_installed
from dcore_jax.mesh import BATCH_AXES, device_line, make_mesh, put_global
from dcore_jax.metrics import MetricLog, check_trackers
from dcore_jax.models import read_model_config
from dcore_jax.plots import plot_loss
from dcore_jax.progress import log, progress_bar
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.evaluation import Evaluation
from dcore_jax.sft.inputs import (
    BatchStream,
    check_named,
    load_data,
    model_and_files,
    resumed_stream,
    store_fingerprint,
)
from dcore_jax.sft.page import write_page
from dcore_jax.sft.step import Batch, make_train_step
from dcore_jax.sft.token_weights import Weighting
from dcore_jax.sft.watch import Watch
from dcore_jax.training import TrainSetup, TrainState
from dcore_jax.training.compilation import Program
from dcore_jax.training.preemption import preemption_signal
from dcore_jax.training.run_folder import (
    RunRecord,
    check_config_unchanged,
    check_same_data,
    lock_run_folder,
    lora_record,
    model_name,
    record_run,
    run_began,
)
from dcore_jax.training.state import state_from_trees, state_to_trees, whole_model
from dcore_jax.weights import shardings

RECIPE = "sft"


@dataclass(frozen=True)
class SFTResult:
    """How a run ended."""

    output: Path
    model: Path  # the folder the weights came from; its tokenizer belongs to the export
    step: int
    total_steps: int
    first_loss: float | None  # of this start of the run; None where no step was left to do
    last_loss: float | None
    preempted: bool = False  # stopped by a signal: saved, to be started again


@dataclass
class _Run:
    """A run under way: what the loop reads and what it changes."""

    config: SFTConfig
    output: Path
    setup: TrainSetup
    train_step: Program
    frozen: Any  # parameters that no step changes; None where all are trained
    checkpoints: Checkpoints
    stream: BatchStream
    data: dict[str, str]  # the samples' fingerprint
    total: int  # the step at which the run ends
    state: TrainState
    batches: Any  # an iterator with get_state, of grain
    weighting: Weighting | None  # of the tokens by region, where the loss weighs them

    @property
    def done(self) -> bool:
        return int(self.state.step) >= self.total


def train(config: SFTConfig) -> SFTResult:
    """Trains until the last step, or until SIGTERM or Ctrl-C; continues a run folder that is already there.

    Call `dcore_jax.mesh.prepare_devices(config.mesh)` first.

    Raises:
      UserError: a mistake in config, data, model or mesh; a disk that is full; a loss or gradient that is not finite.
    """
    check_named(config)
    check_trackers(config.trackers)
    check_lora_installed(config.lora)
    mesh = make_mesh(config.mesh)
    _check_rows(config, mesh)
    output = Path(config.output)
    with lock_run_folder(output):
        check_config_unchanged(config, output, RECIPE)
        folder, files = model_and_files(config, output)
        # Refuses a mesh that does not divide the model before the data are read.
        shardings(read_model_config(folder), mesh)
        began = run_began(output)
        store = load_data(config, folder, files, output, began)
        with jax.set_mesh(mesh):
            run = _start_or_resume(config, folder, mesh, store, output)
            log(_header(run))
            # A checkpoint that is being written is finished also where the run stops with an error.
            with closing(run.checkpoints), closing(run.batches):
                return _loop(run, began)


def _check_rows(config: SFTConfig, mesh: Mesh) -> None:
    parts = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    micro = config.rows // config.accumulation
    if micro % parts:
        raise UserError(
            f"rows={config.rows} in {config.accumulation} microbatches of {micro} cannot be split over {parts} devices "
            f"(data x fsdp); use a multiple of {parts * config.accumulation}"
        )


def _start_or_resume(config: SFTConfig, folder: Path, mesh: Mesh, store: SampleStore, output: Path) -> _Run:
    """The run before its next step: from the model's weights, or from the last checkpoint."""
    checkpoints = Checkpoints(output, keep=config.checkpoint.keep)
    data, step = store_fingerprint(store), checkpoints.latest()
    stream, saved, same = BatchStream.from_config(config), None, False
    if step is not None:
        _, saved = checkpoints.restore(step, {})
        check_same_data(output, saved, data)
        stream, same = resumed_stream(config, saved["stream"], step, finished=saved["finished"])
    total = stream.total_steps(config, store)
    setup = TrainSetup(
        folder,
        mesh,
        compute=config.compute,
        optimizer=config.optimizer,
        updates=total,
        seed=config.seed,
        lora=config.lora,
    )
    weighting, main = None, jax.process_index() == 0
    frozen = setup.load_frozen(progress=main)
    if step is None or saved is None:
        params = setup.load_params(progress=main)
        if config.loss.name != "sft":
            weighting = Weighting.of_run(config, setup, whole_model(params, frozen), store, stream)
        state = setup.initial_state(params)
    elif config.loss.name != "sft":
        weighting = Weighting.resumed(config, setup, saved["weighting"], store)
    if weighting is not None:
        store = weighting.store
    batches = iter(stream.batches(config, store))
    if step is not None and saved is not None:
        trees, _ = checkpoints.restore(step, state_to_trees(setup.abstract_state))
        state = state_from_trees(trees)
        if same:
            batches.set_state(saved["batches"])
        log(f"resuming {config.output} after step {step} of {total}")
        if total != saved["total"]:
            log(f"steps: {saved['total']} -> {total}; the learning rate schedule now spans all {total}")
    step_function = make_train_step(setup.graph, setup.optimizer, ema_decay=setup.ema_decay)
    train_step = setup.compile_step(step_function, "the training step")
    return _Run(
        config, output, setup, train_step, frozen, checkpoints, stream, data, total, state, batches, weighting
    )


def _header(run: _Run) -> str:
    config, model, step = run.config, run.setup.model_config, int(run.state.step)
    what = f"{model.model_type} with {model.num_parameters:,} parameters, {config.compute.dtype} on {device_line(run.setup.mesh)}"
    batch = f"{config.rows} rows of {config.packing.length:,} tokens a step, {config.loss_mask} mask"
    left = max(run.total - step, 0)
    loss = f"\nloss      {run.weighting}" if run.weighting else ""
    lora = f"\nlora      {line}" if (line := run.setup.lora_line()) else ""
    return f"model     {what}{lora}\nbatch     {batch}{loss}\nsteps     {left:,} to go of {run.total:,}, into {config.output}"


def _loop(run: _Run, began: datetime) -> SFTResult:
    config, output, total = run.config, run.output, run.total
    step = start = saved = int(run.state.step)
    main = jax.process_index() == 0
    metrics_log = MetricLog(output, config.trackers, start, config_to_dict(config)) if main else None
    record = RunRecord(
        RECIPE,
        model_name(output, run.setup.folder, config.model),
        config.compute.param_dtype,
        ema=bool(config.optimizer.ema_decay),
        began=began.isoformat(),
        lora=lora_record(config.lora),
    )
    record_run(config, output, record)  # only now is there a run to go on with
    watch = Watch(config, run.setup, metrics_log, output)
    evaluation = None
    if config.eval_data or config.eval:
        evaluation = Evaluation(config, run.setup, output, began, start)
        run.checkpoints.protected = evaluation.best_step
    bar = progress_bar(total, initial=start, unit="step", disable=not main)
    pending, stopped = None, False
    try:
        with preemption_signal() as stop_requested:
            while step < total and not stopped:
                packed = _next_batch(run.batches, step, total)
                batch = _to_device(packed, config, run.setup.mesh)
                run.state, metrics = run.train_step(run.state, batch, run.frozen)
                step += 1
                # Step n runs on the device while step n - 1 is written down.
                if pending is not None:
                    watch.record(*pending, bar)
                pending = (step, metrics, packed)
                stopped = stop_requested(step)
                best = _evaluate_if_due(run, evaluation, step) if not stopped else False
                if step % config.checkpoint.every == 0 or step == total or stopped or best:
                    watch.record(*pending, bar)  # never save what was not seen to be finite
                    pending = None
                    _save(run, step)
                    saved = step
        if pending is not None:
            watch.record(*pending, bar)
        run.checkpoints.wait()
    finally:
        bar.close()
        if evaluation is not None:
            evaluation.close()
        if metrics_log is not None:
            metrics_log.close()
    if main and step > start:
        plot_loss(output / "metrics.jsonl", output / "loss.png")
        write_page(output, device_line(run.setup.mesh))
    preempted = stopped and step < total
    if preempted:
        log(f"{stop_requested.name}: saved step {saved} of {total}; start the same line again to go on")
    return SFTResult(output, run.setup.folder, step, total, watch.first, watch.last, preempted)


def _evaluate_if_due(run: _Run, evaluation: Evaluation | None, step: int) -> bool:
    """Whether the step was evaluated and is the best so far: then its checkpoint is written and stays."""
    if evaluation is None or not evaluation.due(step, run.total):
        return False
    best = evaluation.run(step, whole_model(run.state.params, run.frozen))
    if best:
        run.checkpoints.protected = step
    return best


def _next_batch(
    batches: Iterator[PackedBatch | WeightedBatch], step: int, total: int
) -> PackedBatch | WeightedBatch:
    packed = next(batches, None)
    if packed is None:
        raise UserError(f"the data ended at step {step} of {total}; lower --steps or raise --epochs")
    return packed


def _to_device(packed: PackedBatch | WeightedBatch, config: SFTConfig, mesh: Mesh) -> Batch:
    micro = jax.tree.map(lambda x: x.reshape(config.accumulation, -1, x.shape[-1]), tuple(packed))
    return Batch(*put_global(mesh, (None, "batch", None), micro))


def _save(run: _Run, step: int) -> None:
    place = {
        "batches": run.batches.get_state(),
        "stream": run.stream.to_json(),
        "finished": step >= run.total,
        "total": run.total,
        **({"weighting": run.weighting.to_json()} if run.weighting else {}),
    }
    run.checkpoints.save(step, state_to_trees(run.state), {**place, **run.data})
