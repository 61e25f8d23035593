"""Evaluation of trained models: held-out tasks of the tool world, solved with any engine (toolworld.py)."""

from dcore_jax.evaluation.toolworld import (
    Attempt,
    accuracy_table,
    attempt_held_out,
    attempt_tasks,
    solve,
    transcript,
)

__all__ = ["Attempt", "accuracy_table", "attempt_held_out", "attempt_tasks", "solve", "transcript"]
