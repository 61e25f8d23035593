"""The RL run: prompts in, a checkpointed and resumable run folder out. Read from top to bottom.

<output>/config.yaml         the effective config           metrics.jsonl      one object a step
         checkpoints/        parameters, optimizer, cursor  rollouts.jsonl     one object a response
         data.json           what was read and left out     evaluation.jsonl   greedy answers to fixed prompts
         *.png               the pictures                   token_entropy.json the most and least certain tokens
         warm_start/         the nano model's SFT run, where model is `nano`
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from dcore_jax.advantages import drop_overlong, region_entropy
from dcore_jax.algorithms import policy_batch
from dcore_jax.checkpoint import Checkpoints, abstract
from dcore_jax.config import config_to_dict, read_config
from dcore_jax.data.rendering import end_of_turn_ids
from dcore_jax.engines import Engine, NativeEngine
from dcore_jax.errors import UserError
from dcore_jax.mesh import BATCH_AXES, make_mesh, sharding
from dcore_jax.metrics import MetricLog
from dcore_jax.models import Compute, Decoder, abstract_decoder, read_model_config
from dcore_jax.plots_rl import plot_run
from dcore_jax.regions import TokenBytes, response_regions
from dcore_jax.rl.batch import pad_samples
from dcore_jax.rl.config import NANO, RLConfig
from dcore_jax.rl.embedded import warm_start
from dcore_jax.rl.rollouts import Sampler, StepRollouts
from dcore_jax.rl.sources import evaluation_prompts, load_tokenizer, training_prompts
from dcore_jax.rl.step import Minibatch, make_update, response_logprobs
from dcore_jax.rl.watch import (
    Scored,
    StepLog,
    TokenEntropy,
    evaluation_row,
    rollout_metrics,
    rollout_rows,
    token_metrics,
    update_metrics,
)
from dcore_jax.run_folder import only_run_in, sigterm, write_or_compare_config
from dcore_jax.sft.step import TrainState, learning_rate_schedule, make_optimizer
from dcore_jax.weights import load_decoder, local_folder, shardings

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


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
        write_or_compare_config(config, output)
        folder = _model_folder(config, output)
        tokenizer = load_tokenizer(folder)
        prompts, report = training_prompts(config, tokenizer)
        print(report)
        (output / "data.json").write_text(report.to_json())
        held_out = evaluation_prompts(config, tokenizer)
        with jax.set_mesh(mesh):
            run = _Run(config, mesh, folder, len(prompts))
            checkpoints = Checkpoints(output, keep=config.checkpoint.keep)
            state, cursor = _start_or_resume(config, run, checkpoints)
            print(_header(config, run, int(state.step) // config.updates))
            engine = _engine(config, run, state, tokenizer)
            try:
                return _loop(config, run, state, cursor, engine, checkpoints, prompts, held_out, tokenizer)
            finally:
                engine.close()


def _loop(config, run, state, cursor, engine, checkpoints, prompts, held_out, tokenizer) -> RLResult:
    output, total = Path(config.output), run.total
    step = start = saved = int(state.step) // config.updates
    sampler = Sampler(config, run.algorithm, prompts, tokenizer, total)
    watch = _Watch(config, run, tokenizer, start)
    ahead: Future[StepRollouts] | None = None
    stopped = False
    bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1)
    try:
        with sigterm() as asked_to_stop, ThreadPoolExecutor(1) as thread:
            if held_out and step == 0:
                watch.evaluated(0, sampler.greedy(engine, held_out))
            while step < total and not stopped:
                step += 1
                clock = _Clock()
                rollouts = ahead.result() if ahead else sampler.step(engine, step, cursor.draw)
                clock.lap("rollout")
                if config.rollout.staleness and step < total:
                    # Sampled while this step trains: by weights that are one step old when they are trained on.
                    engine.update_weights(state.params, step - 1)
                    ahead = thread.submit(sampler.step, engine, step + 1, rollouts.next_draw)
                scored, cursor = run.score(state, rollouts, cursor, step, tokenizer)
                clock.lap("logprobs")
                watch.sampled(step, rollouts, scored)
                clock.lap("log")
                state, updates = run.update(state, scored)
                clock.lap("update")
                watch.trained(step, rollouts, scored, updates, clock, bar)
                due = config.evaluation.every and step % config.evaluation.every == 0
                stopped = asked_to_stop(step)
                if not config.rollout.staleness:
                    engine.update_weights(state.params, step)
                if held_out and (due or step == total):
                    if ahead is not None and step < total:
                        ahead.result()  # one thread drives an engine
                    engine.update_weights(state.params, step)
                    watch.evaluated(step, sampler.greedy(engine, held_out))
                if step % config.checkpoint.every == 0 or step == total or stopped:
                    checkpoints.save(step, _trees(state), cursor.to_json())
                    saved = step
        checkpoints.wait()
    finally:
        bar.close()
        watch.close()
    checkpoints.close()
    if step > start:
        watch.tokens_to(output / "token_entropy.json")
        plot_run(output)
    preempted = stopped and step < total
    if preempted:
        print(f"SIGTERM: saved step {saved} of {total}; start the same line again to go on")
    return RLResult(output, run.folder, step, total, watch.first, watch.last, preempted)


@dataclass(frozen=True)
class _Cursor:
    """What a checkpoint holds beside arrays."""

    draw: int = 0  # of the prompt stream
    region_entropy: tuple[float, ...] | None = None  # ResT's, of the first step

    def to_json(self) -> dict[str, Any]:
        return {"draw": self.draw, "region_entropy": self.region_entropy and list(self.region_entropy)}


class _Run:
    """The compiled functions, where everything lies, and the reference model."""

    def __init__(self, config: RLConfig, mesh: Mesh, folder: Path, prompts: int):
        settings = config.compute
        self.config, self.mesh, self.folder = config, mesh, folder
        self.algorithm = config.algorithm_config()
        self.total = config.steps or max(1, config.epochs * prompts // config.prompts)
        self.compute = Compute(
            dtype=_DTYPES[settings.dtype],
            param_dtype=_DTYPES[settings.param_dtype],
            attention=settings.attention,
            remat=settings.remat,
        )
        self.model_config = read_model_config(folder)
        self.graph, shapes = nnx.split(abstract_decoder(self.model_config, self.compute))
        self.schedule = learning_rate_schedule(config.optimizer, self.total * config.updates)
        self.optimizer = make_optimizer(config.optimizer, self.schedule)
        everywhere: Any = NamedSharding(mesh, P())
        params = shardings(self.model_config, mesh)
        state = jax.eval_shape(self.new_state, shapes)
        moments = optax.tree.map_params(
            self.optimizer, lambda _, s: s, state.optimizer, params, transform_non_params=lambda _: everywhere
        )
        self.where = TrainState(params, moments, None, everywhere, everywhere)
        self.abstract = abstract(state, self.where)
        temperature = config.rollout.temperature
        update = make_update(
            self.graph,
            self.optimizer,
            self.algorithm,
            max_response=config.rollout.max_response,
            temperature=temperature,
        )
        self._update = jax.jit(update, donate_argnums=0, out_shardings=(self.where, everywhere))
        self._logprobs = jax.jit(partial(response_logprobs, self.graph, temperature=temperature))
        self._policy_batch = jax.jit(partial(policy_batch, self.algorithm))
        self._reference: Any = None

    def new_state(self, params: Any) -> TrainState:
        rng = jax.random.PRNGKey(self.config.seed)
        return TrainState(params, self.optimizer.init(params), None, jnp.zeros((), jnp.int32), rng)

    def load(self) -> nnx.State:
        decoder = load_decoder(self.folder, compute=self.compute, mesh=self.mesh, progress=True)
        return nnx.split(decoder)[1]

    def keep_reference(self, params: nnx.State | None = None) -> None:
        """The policy as it was before training, where the loss's KL needs it."""
        if self.algorithm.needs_reference:
            reference = self.load() if params is None else jax.tree.map(jnp.copy, params)
            self._reference = jax.device_get(reference) if self.config.reference_on_host else reference

    def score(
        self,
        state: TrainState,
        rollouts: StepRollouts,
        cursor: _Cursor,
        step: int,
        tokenizer: TokenBytes | Any,
    ) -> tuple[Scored, _Cursor]:
        """Log-probabilities and entropies by the trainer, then advantages and everything else that the loss needs."""
        config, algorithm = self.config, self.algorithm
        samples = [[rollout.sample for rollout in group] for group in rollouts.groups]
        padded = pad_samples(
            samples, max_prompt=config.rollout.max_prompt, max_response=config.rollout.max_response
        )
        sequences, flat = padded.sequences, [rollout for group in rollouts.groups for rollout in group]
        old_logprobs, entropy = self._by_chunks(state.params, sequences)
        reference = None
        if algorithm.needs_reference:
            held = self._reference
            params = jax.device_put(held, self.where.params) if config.reference_on_host else held
            reference, _ = self._by_chunks(params, sequences)
        ids = [rollout.sample.ids for rollout in flat]
        call_format, rules = config.reward.call_format, algorithm.region_rules
        regions = response_regions(
            ids, tokenizer_bytes(tokenizer), call_format, length=sequences.mask.shape[1], rules=rules
        )
        mask = sequences.mask
        if algorithm.drop_overlong:
            cut = np.array([rollout.sample.finish_reason == "length" for rollout in flat])
            mask = np.asarray(drop_overlong(mask, cut))
        start = cursor.region_entropy
        if start is None and algorithm.region_weighting in ("inverse", "collision"):
            start = tuple(float(x) for x in region_entropy(entropy, regions, mask).mean())
        policy = self._policy_batch(
            np.array([rollout.score for rollout in flat], np.float32),
            padded.groups,
            mask,
            old_logprobs,
            old_entropy=entropy,
            ref_logprobs=reference,
            engine_logprobs=padded.engine_logprobs,
            regions=regions,
            region_entropy=None if start is None else np.array(start, np.float32),
            progress=np.float32(step - 1),
        )
        scored = Scored(padded, regions, old_logprobs, entropy, jax.device_get(policy))
        return scored, _Cursor(rollouts.next_draw, start)

    def update(self, state: TrainState, scored: Scored) -> tuple[TrainState, list[Any]]:
        """The step's updates, each on its share of the groups, in the order in which they were drawn."""
        rows, chunk = self.config.rows_per_update, self.config.rows_per_pass
        whole = Minibatch(scored.padded.sequences, scored.policy)
        done = []
        for first in range(0, self.config.responses, rows):
            share = jax.tree.map(
                lambda x, at=first: x[at : at + rows].reshape(-1, chunk, *x.shape[1:]), whole
            )
            state, metrics = self._update(state, self._put(share, leading=1))
            done.append(metrics)
        return state, jax.device_get(done)

    def _by_chunks(self, params: Any, sequences: Any) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.rows_per_pass
        chunks = []
        for first in range(0, self.config.responses, size):
            chunk = jax.tree.map(lambda x, at=first: x[at : at + size], sequences)
            chunks.append(self._logprobs(params, self._put(chunk)))
        logprobs, entropy = zip(*jax.device_get(chunks))
        return np.concatenate(logprobs), np.concatenate(entropy)

    def _put(self, tree: Any, leading: int = 0) -> Any:
        def put(x: Any) -> jax.Array:
            logical = (None,) * leading + ("batch",) + (None,) * (x.ndim - leading - 1)
            return jax.device_put(np.asarray(x), sharding(self.mesh, logical))

        return jax.tree.map(put, tree)


class _Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now


class _Watch:
    """Writes steps down, and stops at what is not finite."""

    def __init__(self, config: RLConfig, run: _Run, tokenizer: Any, start: int):
        output = Path(config.output)
        self._config, self._run, self._tokenizer, self._output = config, run, tokenizer, output
        self._metrics = MetricLog(output, config.trackers, start, config_to_dict(config))
        self._rollouts = StepLog(output / "rollouts.jsonl", start)
        self._evaluations = StepLog(output / "evaluation.jsonl", start)
        self._tokens = TokenEntropy(run.model_config.vocab_size)
        self.first: float | None = None
        self.last: float | None = None

    def sampled(self, step: int, rollouts: StepRollouts, scored: Scored) -> None:
        """After the rollouts, before the update: a run killed between the two has them on disk."""
        self._rollouts.write(rollout_rows(step, rollouts, scored))
        mask = np.asarray(scored.padded.sequences.mask)
        ids = [i for group in rollouts.groups for rollout in group for i in rollout.sample.ids]
        self._tokens.add(np.array(ids, np.int64), scored.old_entropy[mask])

    def trained(
        self,
        step: int,
        rollouts: StepRollouts,
        scored: Scored,
        updates: Sequence[Any],
        clock: _Clock,
        bar: tqdm,
    ) -> None:
        generated = int(scored.padded.sequences.mask.sum())
        row = {
            "step": step,
            **rollout_metrics(rollouts, self._config.reward.call_format),
            **token_metrics(scored),
            **update_metrics(updates),
            "learning_rate": float(self._run.schedule(step * self._config.updates - 1)),
            "generated_tokens": generated,
            "generated_tokens_per_second": generated / max(clock.seconds["rollout"], 1e-9),
            "seconds": sum(clock.seconds.values()),
            **{f"seconds_{name}": seconds for name, seconds in clock.seconds.items()},
        }
        self._metrics.write(row)
        if not all(bool(update.finite) for update in updates):
            path = self._output / f"nonfinite_step_{step}.npz"
            np.savez_compressed(path, old_logprobs=scored.old_logprobs, **scored.padded.sequences._asdict())
            raise UserError(
                f"step {step}: loss {row['loss']:.4g} and gradient norm {row['gradient_norm']:.4g} are not both finite; the "
                f"batch is in {path}, the last checkpoint is good"
            )
        reward = float(row["reward"])
        self.first, self.last = reward if self.first is None else self.first, reward
        shown = {
            "reward": f"{reward:.3f}",
            "correct": f"{row['correct']:.0%}",
            "flat": f"{row['zero_variance_groups']:.0%}",
            "entropy": f"{row['entropy']:.3f}",
        }
        bar.set_postfix(shown, refresh=False)
        bar.update()

    def evaluated(self, step: int, answers: Sequence[Any]) -> None:
        row = evaluation_row(step, answers)
        self._evaluations.write([row])
        tqdm.write(
            f"greedy, after step {step}: reward {row['reward']:.3f}, correct {row['correct']:.1%} of {row['prompts']}"
        )

    def tokens_to(self, path: Path) -> None:
        path.write_text(json.dumps(self._tokens.extremes(self._tokenizer), indent=1) + "\n")

    def close(self) -> None:
        for log in (self._metrics, self._rollouts, self._evaluations):
            log.close()


def trained_decoder(run_folder: str | Path, step: int | None = None) -> tuple[Decoder, Path]:
    """The policy of a run's checkpoint (the latest, or `step`) and the folder it started from; no optimizer is read."""
    run_folder = Path(run_folder)
    if not (run_folder / "config.yaml").exists():
        raise UserError(f"{run_folder}: no config.yaml in it; give the folder of an RL run")
    config = read_config(RLConfig, run_folder / "config.yaml")
    checkpoints = Checkpoints(run_folder, keep=None)
    found = checkpoints.latest() if step is None else step
    if found is None:
        raise UserError(f"{run_folder}: no checkpoint yet; let the run reach its first one")
    folder = _model_folder(config, run_folder)
    dtype = _DTYPES[config.compute.param_dtype]
    model_config = read_model_config(folder)
    graph, shapes = nnx.split(abstract_decoder(model_config, Compute(dtype=dtype, param_dtype=dtype)))
    where = shardings(model_config, make_mesh("1"))
    trees, _ = checkpoints.restore(found, {"params": abstract(shapes, where)})
    checkpoints.close()
    return nnx.merge(graph, trees["params"]), folder


def _trees(state: Any) -> dict[str, Any]:
    counters = {"step": state.step, "rng": state.rng}
    return {"params": state.params, "optimizer": state.optimizer, "counters": counters}


def _start_or_resume(config: RLConfig, run: _Run, checkpoints: Checkpoints) -> tuple[TrainState, _Cursor]:
    step = checkpoints.latest()
    if step is None:
        params = run.load()
        run.keep_reference(params)
        make = jax.jit(run.new_state, out_shardings=run.where, donate_argnums=0)
        return make(params), _Cursor()
    run.keep_reference()
    trees, data = checkpoints.restore(step, _trees(run.abstract))
    counters, start = trees["counters"], data["region_entropy"]
    print(f"resuming {config.output} after step {step} of {run.total}")
    state = TrainState(trees["params"], trees["optimizer"], None, counters["step"], counters["rng"])
    return state, _Cursor(int(data["draw"]), start and tuple(start))


def _engine(config: RLConfig, run: _Run, state: TrainState, tokenizer: Any) -> Engine:
    settings = config.rollout
    return NativeEngine(
        nnx.merge(run.graph, state.params),
        slots=settings.slots,
        max_length=settings.max_prompt + settings.max_response,
        eos_token_ids=sorted(end_of_turn_ids(tokenizer)),
        mesh=run.mesh,
        first_length=settings.cache_length,
        weight_version=int(state.step) // config.updates,
    )


def _model_folder(config: RLConfig, output: Path) -> Path:
    if not config.model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id>, or --model nano for the embedded one"
        )
    return warm_start(config, output) if config.model == NANO else local_folder(config.model)


def _check_devices(config: RLConfig, mesh: Mesh) -> None:
    if jax.process_count() > 1:
        raise UserError("the native engine runs in one process; start a single one with all devices")
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


def _header(config: RLConfig, run: _Run, step: int) -> str:
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


_BYTES: dict[int, TokenBytes] = {}


def tokenizer_bytes(tokenizer: Any) -> TokenBytes:
    """The tokenizer's bytes by id, remembered from step to step."""
    return _BYTES.setdefault(id(tokenizer), TokenBytes(tokenizer))
