"""What every benchmark of `dcore eval` does at its end."""

import time
from pathlib import Path

from dcore_jax.evaluation.summary import Evaluation, summary_text, write_evaluation


def close(evaluation: Evaluation, output: str | Path, began: float) -> None:
    """Writes the evaluation into its folder and prints the table.

    Args:
      began: when the work began, by `time.monotonic()`.
    """
    page = write_evaluation(output, evaluation, seconds=time.monotonic() - began)
    print(summary_text(evaluation))
    print(f"\nto read: {page}")
