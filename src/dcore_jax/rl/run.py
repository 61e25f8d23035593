"""The RL run: prompts in, a checkpointed and resumable run folder out. The order of the calls is the order of the file.

<output>/config.yaml         the effective config           metrics.jsonl      one object a step
         checkpoints/        parameters, optimizer, cursor  rollouts.jsonl     one object a response
         data.json           what was read and left out     evaluation.jsonl   greedy answers to fixed prompts
         rewards.json        weights, hashes of reward files
         report.html         the run for reading            evaluation_answers.jsonl  those answers, one object each
         *.png               the pictures                   token_entropy.json the most and least certain tokens
         start.json          rewards before the first update
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from dcore_jax.atomic import write_text_atomic
from dcore_jax.checkpoint import Checkpoints
from dcore_jax.data.chat_template import chat_template
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.engines import Engine, check_engine_installed, open_engine
from dcore_jax.errors import UserError
from dcore_jax.mesh import device_line, make_mesh
from dcore_jax.metrics import check_trackers
from dcore_jax.models import read_model_config
from dcore_jax.nano.config import NANO, NANO_POSITIONS
from dcore_jax.plots_rl import plot_run
from dcore_jax.progress import Progress, log, progress_bar
from dcore_jax.regions import TokenBytes
from dcore_jax.rewards import RewardMix
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.journal import Clock, Journal
from dcore_jax.rl.learner import Cursor, Learner
from dcore_jax.rl.page import write_page
from dcore_jax.rl.prompts import Prompt
from dcore_jax.rl.rewards import check_same_rewards, record_rewards, rewards_of
from dcore_jax.rl.rollouts import Sampler, StepRollouts
from dcore_jax.rl.sources import evaluation_prompts, prompts_fingerprint, training_prompts
from dcore_jax.rl.start import write_start
from dcore_jax.sft.base import base_model
from dcore_jax.training import TrainState
from dcore_jax.training.preemption import preemption_signal
from dcore_jax.training.run_folder import (
    RunRecord,
    check_config_unchanged,
    check_same_data,
    lock_run_folder,
    model_name,
    record_run,
    run_began,
)
from dcore_jax.training.state import state_from_trees, state_to_trees
from dcore_jax.weights import local_folder, shardings, stop_token_ids

RECIPE = "rl"


@dataclass(frozen=True)
class RLResult:
    """How a run ended."""

    output: Path
    model: Path  # the folder the policy started from; its tokenizer belongs to an export
    step: int
    total_steps: int
    first_reward: float | None  # of this start of the run; None where no step was left to do
    last_reward: float | None
    preempted: bool = False  # stopped by a signal: saved, to be started again


@dataclass
class _Run:
    """A run under way: what the loop reads and what it changes."""

    config: RLConfig
    reward: RewardMix
    learner: Learner
    sampler: Sampler
    token_bytes: TokenBytes
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    data: dict[str, str]  # the prompts' fingerprint
    checkpoints: Checkpoints
    state: TrainState
    cursor: Cursor
    rollouts_ahead: Future[StepRollouts] | None = None  # of the next step, with staleness 1

    @property
    def step(self) -> int:
        """Steps done; each is several optimizer updates."""
        return int(self.state.step) // self.config.updates


def train(config: RLConfig) -> RLResult:
    """Trains until the last step, or until SIGTERM or Ctrl-C; continues a run folder that is already there.

    Call `dcore_jax.mesh.prepare_devices(config.mesh)` first.

    Raises:
      UserError: a mistake in config, prompts, model or mesh; a disk that is full; a loss or gradient that is not finite.
    """
    check_trackers(config.trackers)
    check_engine_installed(config.engine)
    reward = rewards_of(config)
    mesh, output = make_mesh(config.mesh), Path(config.output)
    _check_devices(config, mesh)
    with lock_run_folder(output):
        check_config_unchanged(config, output, RECIPE)
        check_same_rewards(reward, output)
        folder = _model_folder(config)
        # Refuses a mesh that does not divide the model before the data are read.
        shardings(read_model_config(folder), mesh)
        tokenizer = load_tokenizer(folder)
        began = run_began(output)
        template = chat_template(tokenizer, config.chat_template_kwargs, began)
        prompts, report = training_prompts(config, template, reward)
        log(str(report))
        write_text_atomic(output / "data.json", report.to_json())
        held_out = evaluation_prompts(config, template)
        with jax.set_mesh(mesh):
            run = _start_or_resume(config, reward, mesh, folder, tokenizer, prompts, held_out)
            log(_header(run, tokenizer))
            with (
                closing(
                    run.checkpoints
                ),  # one that is being written is finished also where the run stops with an error
                closing(Journal(config, run.learner, tokenizer, run.step, reward)) as journal,
                closing(_open_engine(run, tokenizer)) as engine,
            ):
                model = model_name(output, folder, str(folder) if config.model == NANO else config.model)
                # Only now is there a run to go on with.
                record = RunRecord(RECIPE, model, config.compute.param_dtype, began=began.isoformat())
                record_run(config, output, record)
                record_rewards(reward, output)
                return _loop(run, engine, journal)


def _check_devices(config: RLConfig, mesh: Mesh) -> None:
    if jax.process_count() > 1:
        raise UserError("RL runs in one process; start a single one with all devices")
    if config.rollout.staleness and mesh.size > 1:
        raise UserError(
            f"staleness 1 runs two programs at once, which {mesh.size} devices with collectives cannot order; use --mesh 1 "
            "or --rollout.staleness 0"
        )


def _model_folder(config: RLConfig) -> Path:
    if not config.model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id>, or --model nano for the embedded one"
        )
    if config.model == NANO:
        _check_lengths(config, NANO_POSITIONS)  # before it is trained
        folder = base_model(config.base, mesh=config.mesh)
    else:
        folder = local_folder(config.model)
    _check_lengths(config, read_model_config(folder).context_length)
    return folder


def _check_lengths(config: RLConfig, positions: int) -> None:
    prompt, response = config.rollout.max_prompt, config.rollout.max_response
    if prompt + response > positions:
        raise UserError(
            f"rollout.max_prompt={prompt} and rollout.max_response={response} are {prompt + response} tokens, the model's "
            f"max_position_embeddings is {positions}; lower one of them"
        )


def _start_or_resume(
    config: RLConfig,
    reward: RewardMix,
    mesh: Mesh,
    folder: Path,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
) -> _Run:
    """The run before its next step: from the model's weights, or from the last checkpoint."""
    learner, data = Learner(config, mesh, folder, len(prompts)), prompts_fingerprint(prompts)
    checkpoints = Checkpoints(config.output, keep=config.checkpoint.keep)
    step = checkpoints.latest()
    if step is None:
        params = learner.setup.load_params(progress=True)
        learner.keep_reference(params)
        state, cursor = learner.setup.initial_state(params), Cursor()
    else:
        learner.keep_reference()
        trees, saved = checkpoints.restore(step, state_to_trees(learner.setup.abstract_state))
        check_same_data(Path(config.output), saved, data)
        state, cursor = state_from_trees(trees), Cursor.from_json(saved)
        log(f"resuming {config.output} after step {step} of {learner.total}")
    sampler = Sampler(config, learner.algorithm, prompts, tokenizer, learner.total, reward)
    return _Run(
        config,
        reward,
        learner,
        sampler,
        TokenBytes(tokenizer),
        prompts,
        held_out,
        data,
        checkpoints,
        state,
        cursor,
    )


def _header(run: _Run, tokenizer: Any) -> str:
    config, model = run.config, run.learner.setup.model_config
    ends = sorted(stop_token_ids(run.learner.setup.folder, tokenizer))
    notations = sorted({prompt.question.call_format for prompt in run.prompts})
    rules = {k: v for notation in notations for k, v in run.reward.format_rules(notation).items()}
    what = f"{model.model_type} with {model.num_parameters:,} parameters, {config.compute.dtype} on "
    lines = {
        "model": what + device_line(run.learner.setup.mesh),
        "algorithm": f"{config.algorithm.name}, preset {config.algorithm.preset}{config.changed_numbers()}",
        "reward": f"{config.reward_preset}, calls in {' and '.join(notations)}",
        "format": "; ".join(f"{name} {rule}" for name, rule in rules.items()) or "no preset's rule",
        "step": f"{config.prompts} prompts x {config.rollout.group} responses, {config.updates} updates, staleness "
        f"{config.rollout.staleness}",
        "rows": f"a prompt {'once for its group' if run.learner.row_mode == 'shared' else 'with each response'}, at most "
        f"{config.row_length:,} tokens a row",
        "engine": f"{config.engine.name}, responses end at {', '.join(tokenizer.convert_ids_to_tokens(ends))}",
        "sampler": config.importance_line(),
        "steps": f"{max(run.learner.total - run.step, 0):,} to go of {run.learner.total:,}, into {config.output}",
    }
    return "\n".join(f"{name:<10}{value}" for name, value in lines.items() if value)


def _open_engine(run: _Run, tokenizer: Any) -> Engine:
    config, setup = run.config, run.learner.setup
    return open_engine(
        config.engine,
        setup.folder,
        decoder=nnx.merge(setup.graph, run.state.params),
        max_length=config.rollout.max_prompt + config.rollout.max_response,
        eos_token_ids=sorted(stop_token_ids(setup.folder, tokenizer)),
        output=config.output,
        dtype=config.compute.dtype,
        mesh=setup.mesh,
        weight_version=run.step,
        progress=True,
    )


def _loop(run: _Run, engine: Engine, journal: Journal) -> RLResult:
    config, total = run.config, run.learner.total
    step = start = saved = run.step
    stopped, output = False, Path(config.output)
    bar = progress_bar(total, initial=start, unit="step")
    try:
        with preemption_signal() as stop_requested, ThreadPoolExecutor(1) as thread:
            if run.held_out and step == 0:
                journal.log_evaluation(0, run.sampler.greedy(engine, run.held_out))
            while step < total and not stopped:
                step += 1
                _step(run, step, engine, journal, thread, bar)
                stopped = stop_requested(step)
                _evaluate_if_due(run, step, engine, journal)
                if step % config.checkpoint.every == 0 or step == total or stopped:
                    place = {**run.cursor.to_json(), **run.data}
                    run.checkpoints.save(step, state_to_trees(run.state), place)
                    saved = step
        run.checkpoints.wait()
    finally:
        bar.close()
    if step > start:
        journal.write_token_entropy(output / "token_entropy.json")
        write_start(output)
        plot_run(output)
        write_page(output, device_line(run.learner.setup.mesh))
    preempted = stopped and step < total
    if preempted:
        log(f"{stop_requested.name}: saved step {saved} of {total}; start the same line again to go on")
    return RLResult(output, run.learner.setup.folder, step, total, journal.first, journal.last, preempted)


def _step(
    run: _Run, step: int, engine: Engine, journal: Journal, thread: ThreadPoolExecutor, bar: Progress
) -> None:
    """Rollouts, log-probabilities, updates, and the new weights to the engine."""
    clock, ahead = Clock(), run.rollouts_ahead
    rollouts = ahead.result() if ahead else run.sampler.step(engine, step, run.cursor.draw)
    clock.lap("rollout")
    if run.config.rollout.staleness and step < run.learner.total:
        # Sampled while this step trains: by weights that are one step old when they are trained on.
        engine.update_weights(run.state.params, step - 1)
        run.rollouts_ahead = thread.submit(run.sampler.step, engine, step + 1, rollouts.next_draw)
    else:
        engine.release()  # its weights and cache make room for the update; new weights wake it
    scored, run.cursor = run.learner.score(run.state, rollouts, run.cursor, step, run.token_bytes)
    clock.lap("logprobs")
    journal.log_rollouts(step, rollouts, scored)
    clock.lap("log")
    run.state, updates = run.learner.update(run.state, scored)
    clock.lap("update")
    journal.log_step(step, rollouts, scored, updates, clock, bar)
    if not run.config.rollout.staleness:
        engine.update_weights(run.state.params, step)


def _evaluate_if_due(run: _Run, step: int, engine: Engine, journal: Journal) -> None:
    every, last = run.config.evaluation.every, step == run.learner.total
    if not run.held_out or not (last or (every and step % every == 0)):
        return
    if run.rollouts_ahead is not None and not last:
        run.rollouts_ahead.result()  # one thread drives an engine
    engine.update_weights(run.state.params, step)
    journal.log_evaluation(step, run.sampler.greedy(engine, run.held_out))
