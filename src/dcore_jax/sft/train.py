"""The SFT run: files in, a checkpointed and resumable run folder out. Read from top to bottom.

<output>/config.yaml       the effective config           metrics.jsonl   one object a step
         checkpoints/      parameters, optimizer, data    data.json       what was read, what was left out
         loss.png          the curve                      embedded/       the nano model and data, where asked for
"""

import json
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from dcore_jax.checkpoint import Checkpoints, abstract
from dcore_jax.config import NANO, config_to_dict
from dcore_jax.data import load_samples
from dcore_jax.data.packing import PackedBatch, count_batches, packed_batches
from dcore_jax.data.store import SampleStore
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.errors import UserError
from dcore_jax.mesh import BATCH_AXES, make_mesh, put_global
from dcore_jax.metrics import MetricLog
from dcore_jax.models import Compute, Decoder, abstract_decoder, read_model_config
from dcore_jax.plots import plot_loss
from dcore_jax.run_folder import (
    config_of_run,
    fingerprint,
    model_of_run,
    only_run_in,
    refuse_another_config,
    refuse_other_data,
    remember_config,
    sigterm,
)
from dcore_jax.sft.config import SFTConfig
from dcore_jax.sft.embedded import TOOLWORLD, embedded_data, embedded_model
from dcore_jax.sft.step import (
    Batch,
    TrainState,
    learning_rate_schedule,
    make_optimizer,
    make_train_step,
)
from dcore_jax.sft.watch import Watch
from dcore_jax.weights import load_decoder, local_folder, shardings

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclass(frozen=True)
class SFTResult:
    """How a run ended."""

    output: Path
    model: Path  # the folder the weights came from; its tokenizer belongs to the export
    step: int
    total_steps: int
    first_loss: float | None  # of this start of the run; None where no step was left to do
    last_loss: float | None
    preempted: bool = False  # SIGTERM: saved, to be started again


def train(config: SFTConfig) -> SFTResult:
    """Trains until the last step, or until SIGTERM; continues a run folder that is already there.

    Call `dcore_jax.mesh.prepare_devices(config.mesh)` first.

    Raises:
      UserError: a mistake in config, data, model or mesh; a disk that is full; a loss or gradient that is not finite.
    """
    say = print if jax.process_index() == 0 else lambda *_: None
    mesh = make_mesh(config.mesh)
    _check_rows(config, mesh)
    output = Path(config.output)
    with only_run_in(output):
        refuse_another_config(config, output)
        folder, files = _model_and_data(config, output)
        # Refuses a mesh that does not divide the model before the data are read.
        shardings(read_model_config(folder), mesh)
        store = _load_data(config, folder, files, output, say)
        data = _fingerprint(store)
        total = _total_steps(config, store)
        checkpoints = Checkpoints(output, keep=config.checkpoint.keep)
        with jax.set_mesh(mesh):
            run = _Run(config, mesh, folder, total)
            state, batches = _start_or_resume(config, run, store, data, checkpoints, folder, mesh, say)
            say(_header(config, run, mesh, total, int(state.step)))
            try:
                return _loop(config, run, state, batches, data, checkpoints, output, folder, say)
            finally:
                batches.close()  # its prefetch thread


class _Run:
    """The compiled step, its optimizer, and where everything lies."""

    def __init__(self, config: SFTConfig, mesh: Mesh, folder: Path, total_steps: int):
        settings = config.compute
        self.mesh, self.total = mesh, total_steps
        self.compute = Compute(
            dtype=_DTYPES[settings.dtype],
            param_dtype=_DTYPES[settings.param_dtype],
            attention=settings.attention,
            remat=settings.remat,
        )
        self.model_config = read_model_config(folder)
        self.graph, shapes = nnx.split(abstract_decoder(self.model_config, self.compute))
        self.schedule = learning_rate_schedule(config.optimizer, total_steps)
        self.optimizer = make_optimizer(config.optimizer, self.schedule)
        where = shardings(self.model_config, mesh)
        everywhere: Any = NamedSharding(mesh, P())
        state = jax.eval_shape(lambda p: self.new_state(p, config), shapes)
        self.where = TrainState(
            params=where,
            optimizer=optax.tree.map_params(
                self.optimizer,
                lambda _, s: s,
                state.optimizer,
                where,
                transform_non_params=lambda _: everywhere,
            ),
            ema=where if config.optimizer.ema_decay else None,
            step=everywhere,
            rng=everywhere,
        )
        self.abstract = abstract(state, self.where)
        step = make_train_step(self.graph, self.optimizer, ema_decay=config.optimizer.ema_decay)
        self.step = jax.jit(step, donate_argnums=0, out_shardings=(self.where, everywhere))

    def new_state(self, params: Any, config: SFTConfig) -> TrainState:
        ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
        return TrainState(
            params,
            self.optimizer.init(params),
            ema,
            jnp.zeros((), jnp.int32),
            jax.random.PRNGKey(config.seed),
        )


def _loop(config, run: _Run, state: TrainState, batches, data, checkpoints, output, folder, say) -> SFTResult:
    step = start = int(state.step)
    main = jax.process_index() == 0
    log = MetricLog(output, config.trackers, start, config_to_dict(config)) if main else None
    remember_config(config, output)  # only now is there a run to remember
    watch = Watch(config, run.model_config, run.schedule, run.mesh.size, log, output)
    bar = tqdm(
        total=run.total, initial=start, unit="step", disable=not main, dynamic_ncols=True, smoothing=0.1
    )
    saved, pending, stopped = start, None, False
    try:
        with sigterm() as asked_to_stop:
            while step < run.total and not stopped:
                packed = next(batches, None)
                if packed is None:
                    raise UserError(
                        f"the data ended at step {step} of {run.total}; lower --steps or raise --epochs"
                    )
                state, metrics = run.step(state, _put(packed, config, run.mesh))
                step += 1
                # Step n runs on the device while step n - 1 is written down.
                if pending is not None:
                    watch.record(*pending, bar)
                pending = (step, metrics, packed)
                stopped = asked_to_stop(step)
                if step % config.checkpoint.every == 0 or step == run.total or stopped:
                    watch.record(*pending, bar)  # never save what was not seen to be finite
                    pending = None
                    checkpoints.save(step, _trees(state), {**batches.get_state(), **data})
                    saved = step
        if pending is not None:
            watch.record(*pending, bar)
        checkpoints.wait()
    finally:
        bar.close()
        if log is not None:
            log.close()
    checkpoints.close()
    if main and step > start:
        plot_loss(output / "metrics.jsonl", output / "loss.png")
    if stopped and step < run.total:
        say(f"SIGTERM: saved step {saved} of {run.total}; start the same line again to go on")
    return SFTResult(output, folder, step, run.total, watch.first, watch.last, stopped and step < run.total)


def _trees(state: Any) -> dict[str, Any]:
    trees = {
        "params": state.params,
        "optimizer": state.optimizer,
        "counters": {"step": state.step, "rng": state.rng},
    }
    return trees if state.ema is None else {**trees, "ema": state.ema}


def _start_or_resume(config, run: _Run, store: SampleStore, data, checkpoints, folder, mesh, say):
    batches = iter(packed_batches(store, **_batching(config)))
    step = checkpoints.latest()
    if step is None:
        decoder = load_decoder(folder, compute=run.compute, mesh=mesh, progress=jax.process_index() == 0)
        _, params = nnx.split(decoder)
        make = jax.jit(lambda p: run.new_state(p, config), out_shardings=run.where, donate_argnums=0)
        return make(params), batches
    trees, saved = checkpoints.restore(step, _trees(run.abstract))
    refuse_other_data(Path(config.output), saved, data)
    batches.set_state({key: value for key, value in saved.items() if key not in data})
    counters = trees["counters"]
    say(f"resuming {config.output} after step {step} of {run.total}")
    return TrainState(
        trees["params"], trees["optimizer"], trees.get("ema"), counters["step"], counters["rng"]
    ), batches


def trained_decoder(
    run_folder: str | Path, step: int | None = None, *, mesh: Mesh | None = None, ema: bool = False
) -> tuple[Decoder, Path]:
    """The decoder of a run's checkpoint (the latest, or `step`) and the folder its weights came from; no optimizer is read."""
    run_folder = Path(run_folder)
    config = config_of_run(SFTConfig, run_folder)
    checkpoints = Checkpoints(run_folder, keep=None)
    found = checkpoints.find(step)
    if config.model == NANO:
        folder = embedded_model(run_folder / "embedded", config.nano, config.seed)
    else:
        folder = model_of_run(run_folder, config.model)
    compute = Compute(
        dtype=_DTYPES[config.compute.param_dtype], param_dtype=_DTYPES[config.compute.param_dtype]
    )
    model_config = read_model_config(folder)
    graph, shapes = nnx.split(abstract_decoder(model_config, compute))
    name = "ema" if ema else "params"
    if ema and not config.optimizer.ema_decay:
        raise UserError(f"{run_folder}: no moving average was kept (optimizer.ema_decay is 0)")
    where = shardings(model_config, mesh or make_mesh("1"))
    trees, _ = checkpoints.restore(found, {name: abstract(shapes, where)})
    checkpoints.close()
    return nnx.merge(graph, trees[name]), folder


def _put(packed: PackedBatch, config: SFTConfig, mesh: Mesh) -> Batch:
    micro = jax.tree.map(lambda x: x.reshape(config.accumulation, -1, x.shape[-1]), tuple(packed))
    return Batch(*put_global(mesh, (None, "batch", None), micro))


def _check_rows(config: SFTConfig, mesh: Mesh) -> None:
    parts = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    micro = config.rows // config.accumulation
    if micro % parts:
        raise UserError(
            f"rows={config.rows} in {config.accumulation} microbatches of {micro} cannot be split over {parts} devices "
            f"(data x fsdp); use a multiple of {parts * config.accumulation}"
        )


def _model_and_data(config: SFTConfig, output: Path) -> tuple[Path, tuple[str, ...]]:
    if not config.model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id>, or --model nano for the embedded one"
        )
    if not config.data:
        raise UserError("no data: give --data <files>, or --data toolworld for the embedded sample")
    embedded = output / "embedded"
    if config.model == NANO or TOOLWORLD in config.data:
        if jax.process_index() == 0:
            _embed(config, embedded)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("dcore_jax embedded")
    folder = (
        embedded_model(embedded, config.nano, config.seed)
        if config.model == NANO
        else local_folder(config.model)
    )
    files = (
        str(embedded_data(embedded, config.nano, config.seed)) if f == TOOLWORLD else f for f in config.data
    )
    return folder, tuple(files)


def _embed(config: SFTConfig, folder: Path) -> None:
    if config.model == NANO:
        embedded_model(folder, config.nano, config.seed)
    if TOOLWORLD in config.data:
        embedded_data(folder, config.nano, config.seed)


def _load_data(config: SFTConfig, folder: Path, files, output: Path, say) -> SampleStore:
    model = read_model_config(folder)
    tokenizer = load_tokenizer(folder)
    main = jax.process_index() == 0
    store, report = load_samples(
        files,
        tokenizer,
        mask=config.loss_mask,
        # A position the model was never made for would train on noise.
        max_length=min(config.packing.length, model.max_position_embeddings),
        strict=config.strict,
        progress=main,
    )
    say(report)
    vocabulary = model.vocab_size
    if int(store.tokens.max()) >= vocabulary:
        raise UserError(
            f"{folder}: the tokenizer gives id {int(store.tokens.max())}, config.json has vocab_size {vocabulary}"
        )
    if main:
        rejected = {**report.rejected_records.counts, **report.rejected_turns.counts}
        summary = {
            "files": list(files),
            "samples": report.samples,
            "tokens": report.tokens,
            "loss_tokens": report.loss_tokens,
        }
        (output / "data.json").write_text(json.dumps({**summary, "rejected": rejected}, indent=2) + "\n")
    return store


def _fingerprint(store: SampleStore) -> dict[str, str]:
    arrays = (store.tokens, store.offsets, store.loss_bits, store.denominator_bits)
    return fingerprint(array.data.cast("B") for array in arrays)


def _batching(config: SFTConfig) -> dict[str, Any]:
    """What decides the batches: the ones that are counted are the ones that are trained on."""
    return {
        "rows": config.rows,
        "pack_length": config.packing.length,
        "seed": config.seed,
        "epochs": config.epochs,
        "packing": config.packing.method,
        "order": config.packing.order,
        "bins": config.packing.bins,
    }


def _total_steps(config: SFTConfig, store: SampleStore) -> int:
    in_data = count_batches(store, **_batching(config))
    if config.steps is not None and config.steps > in_data:
        raise UserError(
            f"steps={config.steps}, but {config.epochs} epochs of the data are {in_data} steps; raise --epochs or lower --steps"
        )
    return config.steps or in_data


def _header(config: SFTConfig, run: _Run, mesh: Mesh, total: int, step: int) -> str:
    model, device = run.model_config, jax.devices()[0]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "1 device"
    devices = f"{mesh.size} x {device.device_kind} ({axes})"
    what = f"{model.model_type} with {model.num_parameters:,} parameters, {config.compute.dtype} on {devices}"
    batch = f"{config.rows} rows of {config.packing.length:,} tokens a step, {config.loss_mask} mask"
    return f"model     {what}\nbatch     {batch}\nsteps     {total - step:,} to go of {total:,}, into {config.output}"


def peak_host_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
