"""What a training run may be evaluated with while it trains, by name; and what it keeps of it.

`--eval toolworld:100` names an evaluator and its argument. The evaluators themselves are recipes: they are imported by name when
one is asked for, so that training knows none of them.
"""

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dcore_jax.atomic import write_text_atomic
from dcore_jax.errors import UserError, check_choice
from dcore_jax.metrics import StepLog
from dcore_jax.player.model import PlayableModel
from dcore_jax.progress import log

BEST, EVALUATIONS, SAMPLES = "best.json", "evaluations.jsonl", "evaluation_samples.jsonl"


class Score(NamedTuple):
    """What one evaluation found."""

    accuracy: float  # from 0 to 1
    metrics: Mapping[str, float] = {}  # further numbers by name
    samples: Sequence[Mapping[str, Any]] = ()  # a few answers, to be read


Evaluate = Callable[[PlayableModel], Score]
# Name -> "module:function"; the function is given the argument behind the colon ("" without one) and returns an Evaluate.
EVALUATORS: dict[str, str] = {
    "toolworld": "dcore_jax.evaluation.in_training:toolworld",
    "bfcl": "dcore_jax.evaluation.bfcl.in_training:bfcl",
}


def evaluators_of(specs: Sequence[str]) -> dict[str, Evaluate]:
    """The evaluators of `--eval`, by what was written.

    Raises:
      UserError: an unknown name, one given twice, an argument that it does not take.
    """
    found: dict[str, Evaluate] = {}
    for spec in specs:
        name, _, argument = spec.partition(":")
        check_choice("evaluation", name, EVALUATORS)
        if spec in found:
            raise UserError(f"--eval {spec} is given twice; give it once")
        module, _, function = EVALUATORS[name].partition(":")
        found[spec] = getattr(importlib.import_module(module), function)(argument)
    return found


@dataclass(frozen=True)
class Best:
    """The best step so far."""

    step: int
    name: str  # of what decides
    value: float

    @classmethod
    def of_run(cls, output: Path) -> "Best | None":
        """What the run's folder says; None before the first evaluation."""
        path = output / BEST
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


class EvaluationLog:
    """Evaluations of a run: `evaluations.jsonl`, `evaluation_samples.jsonl` and `best.json` in its folder.

    The first evaluator decides which step is best; without one the held-out loss does.

    Args:
      start: the step at which this start of the run begins; later rows of an earlier start are dropped.
    """

    def __init__(self, output: Path, evaluators: Mapping[str, Evaluate], start: int):
        self._output, self._evaluators = output, evaluators
        self._rows = StepLog(output / EVALUATIONS, start)
        self._samples = StepLog(output / SAMPLES, start)
        self.best = Best.of_run(output)
        if self.best is not None and self.best.step > start:
            self.best = None

    def run(self, step: int, model: PlayableModel | None, loss: float | None = None) -> bool:
        """Evaluates and writes down; whether this step is the best so far.

        Args:
          model: None where there is no evaluator to play with.
          loss: on held-out data.
        """
        row: dict[str, Any] = {"step": step}
        began = time.monotonic()
        if loss is not None:
            row["eval_loss"] = loss
        for name, evaluate in self._evaluators.items():
            assert model is not None
            score = evaluate(model)
            row[name] = score.accuracy
            row |= {f"{name}.{key}": value for key, value in score.metrics.items()}
            self._samples.write([{"step": step, "evaluation": name, **sample} for sample in score.samples])
        self._rows.write([row])
        decides = next(iter(self._evaluators), "eval_loss")
        better = self.best is None or (
            row[decides] > self.best.value if self._evaluators else row[decides] < self.best.value
        )
        shown = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "step")
        seconds = f"{time.monotonic() - began:,.0f} s"
        log(f"evaluation after step {step} ({seconds}): {shown}{', the best so far' if better else ''}")
        if better:
            self.best = Best(step, decides, row[decides])
            write_text_atomic(self._output / BEST, json.dumps(self.best.__dict__) + "\n")
        return better

    def close(self) -> None:
        """Closes the files."""
        self._rows.close()
        self._samples.close()
