"""The RL run: prompts in, a checkpointed and resumable run folder out. Read from top to bottom.

<output>/config.yaml         the effective config           metrics.jsonl      one object a step
         checkpoints/        parameters, optimizer, cursor  rollouts.jsonl     one object a response
         data.json           what was read and left out     evaluation.jsonl   greedy answers to fixed prompts
         *.png               the pictures                   token_entropy.json the most and least certain tokens
         base/               the nano model's SFT run, where model is `nano`
"""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from dcore_jax.checkpoint import Checkpoints, abstract
from dcore_jax.config import NANO
from dcore_jax.data.rendering import end_of_turn_ids
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.engines import Engine, open_engine
from dcore_jax.errors import UserError
from dcore_jax.mesh import BATCH_AXES, make_mesh
from dcore_jax.models import (
    Compute,
    Decoder,
    ModelConfig,
    abstract_decoder,
    model_config_from_hf,
    read_model_config,
)
from dcore_jax.plots_rl import plot_run
from dcore_jax.regions import TokenBytes
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.journal import Clock, Journal
from dcore_jax.rl.learner import DTYPES, Cursor, Learner
from dcore_jax.rl.rollouts import Sampler, StepRollouts
from dcore_jax.rl.sources import evaluation_prompts, prompts_fingerprint, training_prompts
from dcore_jax.run_folder import (
    config_of_run,
    keys_of_run,
    model_of_run,
    only_run_in,
    refuse_another_config,
    refuse_other_data,
    remember_config,
    sigterm,
)
from dcore_jax.sft import base_model, find_base_model
from dcore_jax.sft.step import TrainState
from dcore_jax.toolworld.nano import nano_fields
from dcore_jax.weights import local_folder, shardings


@dataclass(frozen=True)
class RLResult:
    """How a run ended."""

    output: Path
    model: Path  # the folder the policy started from; its tokenizer belongs to an export
    step: int
    total_steps: int
    first_reward: float | None  # of this start of the run; None where no step was left to do
    last_reward: float | None
    preempted: bool = False  # SIGTERM: saved, to be started again


def train(config: RLConfig) -> RLResult:
    """Trains until the last step, or until SIGTERM; continues a run folder that is already there.

    Call `dcore_jax.mesh.prepare_devices(config.mesh)` first.

    Raises:
      UserError: a mistake in config, prompts, model or mesh; a disk that is full; a loss or gradient that is not finite.
    """
    mesh, output = make_mesh(config.mesh), Path(config.output)
    _check_devices(config, mesh)
    with only_run_in(output):
        refuse_another_config(config, output)
        folder = _model_folder(config, output)
        # Refuses a mesh that does not divide the model before the data are read.
        shardings(read_model_config(folder), mesh)
        tokenizer = load_tokenizer(folder)
        prompts, report = training_prompts(config, tokenizer)
        print(report)
        (output / "data.json").write_text(report.to_json())
        held_out = evaluation_prompts(config, tokenizer)
        with jax.set_mesh(mesh):
            run = Learner(config, mesh, folder, len(prompts))
            checkpoints = Checkpoints(output, keep=config.checkpoint.keep)
            state, cursor = _start_or_resume(config, run, prompts_fingerprint(prompts), checkpoints)
            done = int(state.step) // config.updates
            print(_header(config, run, done))
            with (
                closing(Journal(config, run, tokenizer, done)) as journal,
                closing(_engine(config, run, state, tokenizer)) as engine,
            ):
                remember_config(config, output)  # only now is there a run to remember
                return _loop(
                    config, run, state, cursor, engine, journal, checkpoints, prompts, held_out, tokenizer
                )


def _loop(config, run, state, cursor, engine, journal, checkpoints, prompts, held_out, tokenizer) -> RLResult:
    output, total = Path(config.output), run.total
    step = start = saved = int(state.step) // config.updates
    sampler = Sampler(config, run.algorithm, prompts, tokenizer, total)
    token_bytes, data = TokenBytes(tokenizer), prompts_fingerprint(prompts)
    ahead: Future[StepRollouts] | None = None
    stopped = False
    bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1)
    try:
        with sigterm() as asked_to_stop, ThreadPoolExecutor(1) as thread:
            if held_out and step == 0:
                journal.evaluated(0, sampler.greedy(engine, held_out))
            while step < total and not stopped:
                step += 1
                clock = Clock()
                rollouts = ahead.result() if ahead else sampler.step(engine, step, cursor.draw)
                clock.lap("rollout")
                if config.rollout.staleness and step < total:
                    # Sampled while this step trains: by weights that are one step old when they are trained on.
                    engine.update_weights(state.params, step - 1)
                    ahead = thread.submit(sampler.step, engine, step + 1, rollouts.next_draw)
                scored, cursor = run.score(state, rollouts, cursor, step, token_bytes)
                clock.lap("logprobs")
                journal.sampled(step, rollouts, scored)
                clock.lap("log")
                state, updates = run.update(state, scored)
                clock.lap("update")
                journal.trained(step, rollouts, scored, updates, clock, bar)
                due = config.evaluation.every and step % config.evaluation.every == 0
                stopped = asked_to_stop(step)
                if not config.rollout.staleness:
                    engine.update_weights(state.params, step)
                if held_out and (due or step == total):
                    if ahead is not None and step < total:
                        ahead.result()  # one thread drives an engine
                    engine.update_weights(state.params, step)
                    journal.evaluated(step, sampler.greedy(engine, held_out))
                if step % config.checkpoint.every == 0 or step == total or stopped:
                    checkpoints.save(step, _trees(state), {**cursor.to_json(), **data})
                    saved = step
        checkpoints.wait()
    finally:
        bar.close()
    checkpoints.close()
    if step > start:
        journal.tokens_to(output / "token_entropy.json")
        plot_run(output)
    preempted = stopped and step < total
    if preempted:
        print(f"SIGTERM: saved step {saved} of {total}; start the same line again to go on")
    return RLResult(output, run.folder, step, total, journal.first, journal.last, preempted)


def is_rl_run(run_folder: str | Path) -> bool:
    """Whether a run folder was written by this recipe, by the fields of its config.yaml; False where there is none."""
    return "algorithm" in keys_of_run(Path(run_folder))


def trained_decoder(run_folder: str | Path, step: int | None = None) -> tuple[Decoder, Path]:
    """The policy of a run's checkpoint (the latest, or `step`) and the folder it started from; no optimizer is read."""
    run_folder = Path(run_folder)
    config = config_of_run(RLConfig, run_folder)
    checkpoints = Checkpoints(run_folder, keep=None)
    found = checkpoints.find(step)
    if config.model == NANO:
        folder = find_base_model(config.base, output=run_folder / "base")
    else:
        folder = model_of_run(run_folder, config.model)
    dtype = DTYPES[config.compute.param_dtype]
    model_config = read_model_config(folder)
    graph, shapes = nnx.split(abstract_decoder(model_config, Compute(dtype=dtype, param_dtype=dtype)))
    where = shardings(model_config, make_mesh("1"))
    trees, _ = checkpoints.restore(found, {"params": abstract(shapes, where)})
    checkpoints.close()
    return nnx.merge(graph, trees["params"]), folder


def _trees(state: Any) -> dict[str, Any]:
    counters = {"step": state.step, "rng": state.rng}
    return {"params": state.params, "optimizer": state.optimizer, "counters": counters}


def _start_or_resume(
    config: RLConfig, run: Learner, prompts: dict[str, str], checkpoints: Checkpoints
) -> tuple[TrainState, Cursor]:
    step = checkpoints.latest()
    if step is None:
        params = run.load()
        run.keep_reference(params)
        make = jax.jit(run.new_state, out_shardings=run.where, donate_argnums=0)
        return make(params), Cursor()
    run.keep_reference()
    trees, data = checkpoints.restore(step, _trees(run.abstract))
    refuse_other_data(Path(config.output), data, prompts)
    counters, start = trees["counters"], data["region_entropy"]
    print(f"resuming {config.output} after step {step} of {run.total}")
    state = TrainState(trees["params"], trees["optimizer"], None, counters["step"], counters["rng"])
    return state, Cursor(int(data["draw"]), start and tuple(start))


def _engine(config: RLConfig, run: Learner, state: TrainState, tokenizer: Any) -> Engine:
    settings = config.rollout
    return open_engine(
        settings.engine,
        run.folder,
        decoder=nnx.merge(run.graph, state.params),
        slots=settings.slots,
        max_length=settings.max_prompt + settings.max_response,
        eos_token_ids=sorted(end_of_turn_ids(tokenizer)),
        servers=settings.servers,
        server_arguments=settings.server_arguments,
        output=config.output,
        dtype=config.compute.dtype,
        mesh=run.mesh,
        first_length=settings.cache_length,
        weight_version=int(state.step) // config.updates,
        progress=True,
    )


def _model_folder(config: RLConfig, output: Path) -> Path:
    if not config.model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id>, or --model nano for the embedded one"
        )
    if config.model != NANO:
        folder = local_folder(config.model)
        _check_lengths(config, read_model_config(folder))
        return folder
    base = config.base
    if base.model == NANO:  # before it is trained
        fields = nano_fields(1, hidden=base.nano.hidden, layers=base.nano.layers)
        _check_lengths(config, model_config_from_hf(fields))
    folder = base_model(base, output=output / "base", mesh=config.mesh)
    _check_lengths(config, read_model_config(folder))
    return folder


def _check_lengths(config: RLConfig, model: ModelConfig) -> None:
    prompt, response = config.rollout.max_prompt, config.rollout.max_response
    if prompt + response > model.max_position_embeddings:
        raise UserError(
            f"rollout.max_prompt={prompt} and rollout.max_response={response} are {prompt + response} tokens, the model's "
            f"max_position_embeddings is {model.max_position_embeddings}; lower one of them"
        )


def _check_devices(config: RLConfig, mesh: Mesh) -> None:
    if jax.process_count() > 1:
        raise UserError("RL runs in one process; start a single one with all devices")
    if config.rollout.staleness and mesh.size > 1:
        raise UserError(
            f"staleness 1 runs two programs at once, which {mesh.size} devices with collectives cannot order; use --mesh 1 "
            "or --rollout.staleness 0"
        )
    parts = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if config.rows_per_pass % parts:
        raise UserError(
            f"passes of {config.rows_per_pass} responses cannot be split over {parts} devices (data x fsdp); "
            f"set micro_rows to a multiple of {parts} that divides {config.rows_per_update}"
        )


def _header(config: RLConfig, run: Learner, step: int) -> str:
    model, device = run.model_config, jax.devices()[0]
    axes = " x ".join(f"{name} {n}" for name, n in run.mesh.shape.items() if n > 1) or "1 device"
    lines = [
        (
            "model",
            f"{model.model_type} with {model.num_parameters:,} parameters, {config.compute.dtype} on {run.mesh.size} x "
            f"{device.device_kind} ({axes})",
        ),
        ("algorithm", f"{config.algorithm}, preset {config.preset}{_changed(config)}"),
        ("reward", f"{config.reward_preset}, calls in {config.reward.call_format}"),
        (
            "step",
            f"{config.prompts} prompts x {config.rollout.group} responses, {config.updates} updates, staleness "
            f"{config.rollout.staleness}",
        ),
        ("steps", f"{run.total - step:,} to go of {run.total:,}, into {config.output}"),
    ]
    return "\n".join(f"{name:<10}{value}" for name, value in lines)


def _changed(config: RLConfig) -> str:
    return f", with {', '.join(config.algorithm_fields)}" if config.algorithm_fields else ""
