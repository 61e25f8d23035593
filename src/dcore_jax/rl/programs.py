"""The compiled programs of an RL step, made once of a config and a training set-up; the learner runs them."""

from functools import partial
from typing import Any, NamedTuple

import jax

from dcore_jax.algorithms import AlgorithmConfig, choose_penalised, policy_batch, policy_batch_denominator
from dcore_jax.rl.config import RLConfig
from dcore_jax.rl.step import (
    Accumulated,
    accumulate_pass,
    finish_update,
    nothing_accumulated,
    response_logprobs,
)
from dcore_jax.training import TrainSetup
from dcore_jax.training.compilation import Program


class RLPrograms(NamedTuple):
    """Jitted functions of rl/step.py and algorithms/batch.py, with the config's numbers and the mesh's shardings in them."""

    logprobs: Program  # (params, rows, mask)
    policy_batch: Any  # as algorithms.policy_batch without the config
    choose_penalised: Any  # (logprobs, policy)
    denominator: Any  # (policy)
    nothing: Any  # (params)
    accumulate: Program  # (params, accumulated, rows, policy, denominator, frozen); accumulated is donated
    finish: Program  # (state, accumulated); the state is donated


def rl_programs(config: RLConfig, algorithm: AlgorithmConfig, setup: TrainSetup) -> RLPrograms:
    """The programs of a run; nothing is compiled before the first call."""
    graph, temperature = setup.graph, config.rollout.temperature
    replicated, params = setup.replicated, setup.state_sharding.params
    accumulated = Accumulated(replicated, replicated, params)
    logprobs = partial(response_logprobs, graph, temperature=temperature)
    denominator = partial(policy_batch_denominator, algorithm, max_length=config.rollout.max_response)
    accumulate = partial(accumulate_pass, graph, algorithm, temperature=temperature)
    return RLPrograms(
        logprobs=Program(jax.jit(logprobs, out_shardings=replicated), "log-probabilities"),
        policy_batch=jax.jit(partial(policy_batch, algorithm)),
        choose_penalised=jax.jit(partial(choose_penalised, algorithm)),
        denominator=jax.jit(denominator),
        nothing=jax.jit(nothing_accumulated, out_shardings=accumulated),
        accumulate=Program(jax.jit(accumulate, donate_argnums=1, out_shardings=accumulated), "the update"),
        finish=Program(
            jax.jit(
                partial(finish_update, setup.optimizer),
                donate_argnums=0,
                out_shardings=(setup.state_sharding, replicated),
            ),
            "the optimizer step",
        ),
    )
