"""Benchmarks that an RL run plays while it trains, with its own engine."""

from pathlib import Path

from dcore_jax.data.chat_template import ChatTemplate
from dcore_jax.data.notation import template_notation
from dcore_jax.engines import Engine
from dcore_jax.player.evaluators import EvaluationLog, evaluators_of
from dcore_jax.player.model import PlayableModel
from dcore_jax.rl.config import RLConfig
from dcore_jax.training import TrainSetup
from dcore_jax.weights import stop_token_ids


class Benchmarks:
    """What `evaluation.benchmarks` names, and which step was best.

    Args:
      start: the step at which this start of the run begins.

    Raises:
      UserError: an unknown evaluation, or an argument that it does not take.
    """

    def __init__(self, config: RLConfig, setup: TrainSetup, template: ChatTemplate, start: int):
        self._config, self._setup, self._template = config, setup, template
        self._ends = stop_token_ids(setup.folder, template.tokenizer)
        self._notation = template_notation(template)
        self._log = EvaluationLog(Path(config.output), evaluators_of(config.evaluation.benchmarks), start)

    @property
    def best_step(self) -> int | None:
        """The step whose checkpoint is kept; None before the first evaluation."""
        return None if self._log.best is None else self._log.best.step

    def play(self, step: int, engine: Engine) -> bool:
        """Plays them with the engine, which holds the step's weights; whether the step is the best so far."""
        folder, vocab = self._setup.folder, self._setup.model_config.vocab_size
        length = self._config.rollout.max_prompt + self._config.rollout.max_response
        model = PlayableModel(
            folder.name, folder, engine, self._template, self._ends, self._notation, vocab, length
        )
        return self._log.run(step, model)
