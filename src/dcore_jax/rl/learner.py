"""What learns: the compiled functions of a step on the mesh, and the reference model."""

import math
from collections.abc import Mapping, Sequence
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
from dcore_jax.algorithms import PolicyBatch
from dcore_jax.engines import Sample
from dcore_jax.losses import kl_in_reward
from dcore_jax.mesh import BATCH_AXES, sharding
from dcore_jax.models import Compute
from dcore_jax.models.attention import choose_implementation
from dcore_jax.regions import TokenBytes, response_regions
from dcore_jax.rl.batch import Scored, response_arrays
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.programs import rl_programs
from dcore_jax.rl.rollouts import StepRollouts
from dcore_jax.rl.rows import RowMode, Rows, pack_rows, row_lengths
from dcore_jax.target import target_platform
from dcore_jax.training import TrainSetup, TrainState
from dcore_jax.training.state import whole_model


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


def row_mode(config: RLConfig, compute: Compute, head_dim: int) -> RowMode:
    """How rows are packed: `packing.mode`, `auto` resolved by what attention can do here.

    Raises:
      UserError: prompts are to be shared, and the attention that is asked for cannot.
    """
    choose = partial(
        choose_implementation,
        compute.attention,
        platform=target_platform(),
        dtype=jnp.dtype(compute.dtype),
        head_dim=head_dim,
        length=row_lengths(config.row_length)[0],
    )
    if config.packing.mode == "auto":
        return "separate" if choose().startswith("splash") else "shared"
    choose(shared_prefixes=config.packing.mode == "shared")
    return config.packing.mode


class Learner:
    """The policy's side of a run. It holds no state that changes: the frozen base (LoRA) and the reference are loaded once.

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
            lora=config.lora,
        )
        self.row_mode = row_mode(config, self.setup.compute, self.setup.model_config.head_dim)
        self._programs = rl_programs(config, self.algorithm, self.setup)
        self._frozen: Any = None
        self._reference: Any = None

    def load_frozen(self) -> None:
        """Loads the parameters that no step changes, where there are any (LoRA); before everything that follows."""
        self._frozen = self.setup.load_frozen(progress=True)

    def policy(self, state: TrainState) -> nnx.State:
        """All parameters of the policy; `nnx.merge(setup.graph, ...)` is its model."""
        return whole_model(state.params, self._frozen)

    def keep_reference(self, params: nnx.State | None = None) -> None:
        """The policy as it was before training, where the loss's KL needs it; with LoRA the base, without a second copy."""
        if self.algorithm.needs_reference and self.setup.lora:
            # With B = 0 the adapters add exactly 0, and the compiled program is the policy's own.
            off = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.setup.abstract_state.params)
            self._reference = whole_model(jax.device_put(off, self.setup.state_sharding.params), self._frozen)
        elif self.algorithm.needs_reference:
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
        flat = [rollout for group in rollouts.groups for rollout in group]
        responses = response_arrays(samples, max_response=config.rollout.max_response)
        shape = responses.mask.shape
        passes = self._passes(samples, shape[1])
        old_logprobs, entropy = self._by_passes(self.policy(state), passes, responses.mask)
        reference = None
        if algorithm.needs_reference:
            held = self._reference
            params = (
                jax.device_put(held, self.setup.state_sharding.params) if config.reference_on_host else held
            )
            reference, _ = self._by_passes(params, passes, responses.mask)
        ids = [rollout.sample.ids for rollout in flat]
        notations, rules = [r.prompt.question.call_format for r in flat], algorithm.region_rules
        regions = response_regions(
            ids,
            token_bytes,
            notations,
            length=shape[1],
            rules=rules,
            in_thought=[rollout.prompt.opening.rstrip().endswith("<think>") for rollout in flat],
        )
        mask = responses.mask
        if algorithm.drop_overlong:
            cut = np.array([rollout.sample.finish_reason == "length" for rollout in flat])
            mask = np.asarray(drop_overlong(mask, cut))
        start = cursor.region_entropy
        if start is None and algorithm.region_weighting in ("inverse", "collision"):
            start = tuple(float(x) for x in region_entropy(entropy, regions, mask).mean())
        policy = self._programs.policy_batch(
            np.array([rollout.score for rollout in flat], np.float32),
            responses.groups,
            mask,
            old_logprobs,
            correct=np.array([rollout.correct for rollout in flat]),
            old_entropy=entropy,
            ref_logprobs=reference,
            engine_logprobs=responses.engine_logprobs,
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
        scored = Scored(responses, passes, regions, old_logprobs, entropy, jax.device_get(policy), reward_kl)
        return scored, Cursor(rollouts.next_draw, start)

    def update(self, state: TrainState, scored: Scored) -> tuple[TrainState, list[Any]]:
        """The step's updates, each on its share of the groups, in the order in which they were drawn."""
        size, done = self.config.responses_per_update, []
        for number, passes in enumerate(scored.passes):
            share = jax.tree.map(lambda x, at=number * size: x[at : at + size], scored.policy)
            policy = jax.device_put(share, self.setup.replicated)
            rows = [self._to_device(one) for one in passes]
            if self.algorithm.kl_cov_ratio and len(rows) > 1:
                policy = self._penalised(state, rows, policy)
            denominator, accumulated = (
                self._programs.denominator(policy),
                self._programs.nothing(state.params),
            )
            for one in rows:
                accumulated = self._programs.accumulate(
                    state.params, accumulated, one, policy, denominator, self._frozen
                )
            state, metrics = self._programs.finish(state, accumulated)
            done.append(metrics)
        return state, jax.device_get(done)

    def _passes(self, samples: Sequence[Sequence[Sample]], tokens: int) -> tuple[tuple[Rows, ...], ...]:
        """The packed rows of each update; their places are those in the update's own arrays."""
        prompts, mesh = self.config.prompts // self.config.updates, self.setup.mesh.shape
        return tuple(
            tuple(
                pack_rows(
                    samples[first : first + prompts],
                    tokens=tokens,
                    row_length=self.config.row_length,
                    rows=math.prod(mesh[axis] for axis in BATCH_AXES),
                    mode=self.row_mode,
                    one_length=self.config.packing.lengths == "one",
                )
            )
            for first in range(0, self.config.prompts, prompts)
        )

    def _by_passes(
        self, params: Any, passes: tuple[tuple[Rows, ...], ...], mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and entropies of all responses; 0 outside the mask."""
        shares = np.split(mask, len(passes))
        found = [
            [self._programs.logprobs(params, self._to_device(one), share)[:2] for one in rows]
            for rows, share in zip(passes, shares)
        ]
        # A token is in one pass, and 0 in the others.
        zeros = np.zeros(shares[0].shape, np.float32)
        parts = [
            [sum(x, start=zeros) for x in zip(*share)] or [zeros, zeros] for share in jax.device_get(found)
        ]
        logprobs, entropy = (np.concatenate(x) for x in zip(*parts))
        return logprobs, entropy

    def _penalised(self, state: TrainState, rows: list[Rows], policy: PolicyBatch) -> PolicyBatch:
        """With KL-Cov's choice among all tokens of an update of several passes, by the policy before it."""
        params = self.policy(state)
        logprobs = sum(self._programs.logprobs(params, one, policy.mask)[0] for one in rows)
        return self._programs.choose_penalised(logprobs, policy)

    def _to_device(self, rows: Rows) -> Rows:
        by_row = sharding(self.setup.mesh, ("batch", None))
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x), by_row), rows)
