"""What learns: the compiled functions of a step on the mesh, and the reference model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dcore_jax.advantages import drop_overlong, region_entropy
from dcore_jax.algorithms import policy_batch
from dcore_jax.losses import kl_in_reward
from dcore_jax.mesh import sharding
from dcore_jax.regions import TokenBytes, response_regions
from dcore_jax.rl.batch import Scored, pad_samples
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.rollouts import StepRollouts
from dcore_jax.rl.step import Minibatch, make_update, response_logprobs
from dcore_jax.training import TrainSetup, TrainState
from dcore_jax.training.compilation import Program


@dataclass(frozen=True)
class Cursor:
    """What a checkpoint holds beside arrays."""

    draw: int = 0  # of the prompt stream
    region_entropy: tuple[float, ...] | None = None  # ResT's, of the first step

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"draw": self.draw, "region_entropy": self.region_entropy and list(self.region_entropy)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Cursor":
        """The inverse of `to_json`; other fields are passed over."""
        start = fields["region_entropy"]
        return cls(int(fields["draw"]), start and tuple(start))


class Learner:
    """The policy's side of a run. It holds no state that changes but the reference model, which is made once.

    Args:
      folder: Hugging Face folder of the policy before training, which is the reference model too.
      prompts: how many there are to train on.
    """

    def __init__(self, config: RLConfig, mesh: Mesh, folder: Path, prompts: int):
        self.config = config
        self.algorithm = config.running_algorithm()
        # The last step of an epoch runs into the next one.
        self.total = config.steps or -(-config.epochs * prompts // config.prompts)
        self.setup = TrainSetup(
            folder,
            mesh,
            compute=config.compute,
            optimizer=config.optimizer,
            updates=self.total * config.updates,
            seed=config.seed,
        )
        graph, temperature = self.setup.graph, config.rollout.temperature
        update = make_update(
            graph,
            self.setup.optimizer,
            self.algorithm,
            max_response=config.rollout.max_response,
            temperature=temperature,
        )
        self._update = self.setup.compile_step(update, "the update")
        self._logprobs = Program(
            jax.jit(partial(response_logprobs, graph, temperature=temperature)), "log-probabilities"
        )
        self._policy_batch = jax.jit(partial(policy_batch, self.algorithm))
        self._reference: Any = None

    def keep_reference(self, params: nnx.State | None = None) -> None:
        """The policy as it was before training, where the loss's KL needs it."""
        if self.algorithm.needs_reference:
            reference = (
                self.setup.load_params(progress=True) if params is None else jax.tree.map(jnp.copy, params)
            )
            self._reference = jax.device_get(reference) if self.config.reference_on_host else reference

    def score(
        self,
        state: TrainState,
        rollouts: StepRollouts,
        cursor: Cursor,
        step: int,
        token_bytes: TokenBytes,
    ) -> tuple[Scored, Cursor]:
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
            params = (
                jax.device_put(held, self.setup.state_sharding.params) if config.reference_on_host else held
            )
            reference, _ = self._by_chunks(params, sequences)
        ids = [rollout.sample.ids for rollout in flat]
        notations, rules = [r.prompt.question.call_format for r in flat], algorithm.region_rules
        regions = response_regions(
            ids,
            token_bytes,
            notations,
            length=sequences.mask.shape[1],
            rules=rules,
            in_thought=[rollout.prompt.opening.rstrip().endswith("<think>") for rollout in flat],
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
            correct=np.array([rollout.correct for rollout in flat]),
            old_entropy=entropy,
            ref_logprobs=reference,
            engine_logprobs=padded.engine_logprobs,
            regions=regions,
            region_entropy=None if start is None else np.array(start, np.float32),
            progress=np.float32(step - 1),
        )
        reward_kl = None
        if algorithm.reward_kl_coefficient and reference is not None:
            reward_kl = -np.asarray(
                kl_in_reward(
                    np.zeros(len(flat), np.float32),
                    old_logprobs,
                    reference,
                    mask,
                    coefficient=algorithm.reward_kl_coefficient,
                    estimator=algorithm.reward_kl_estimator,
                )
            )
        scored = Scored(padded, regions, old_logprobs, entropy, jax.device_get(policy), reward_kl)
        return scored, Cursor(rollouts.next_draw, start)

    def update(self, state: TrainState, scored: Scored) -> tuple[TrainState, list[Any]]:
        """The step's updates, each on its share of the groups, in the order in which they were drawn."""
        rows, chunk = self.config.rows_per_update, self.config.rows_per_pass
        whole = Minibatch(scored.padded.sequences, scored.policy)
        done = []
        for first in range(0, self.config.responses, rows):
            share = jax.tree.map(
                lambda x, at=first: x[at : at + rows].reshape(-1, chunk, *x.shape[1:]), whole
            )
            state, metrics = self._update(state, self._to_device(share, leading=1))
            done.append(metrics)
        return state, jax.device_get(done)

    def _by_chunks(self, params: Any, sequences: Any) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.rows_per_pass
        chunks = []
        for first in range(0, self.config.responses, size):
            chunk = jax.tree.map(lambda x, at=first: x[at : at + size], sequences)
            chunks.append(self._logprobs(params, self._to_device(chunk)))
        logprobs, entropy = zip(*jax.device_get(chunks))
        return np.concatenate(logprobs), np.concatenate(entropy)

    def _to_device(self, tree: Any, leading: int = 0) -> Any:
        def put(x: Any) -> jax.Array:
            logical = (None,) * leading + ("batch",) + (None,) * (x.ndim - leading - 1)
            return jax.device_put(np.asarray(x), sharding(self.setup.mesh, logical))

        return jax.tree.map(put, tree)
