"""What a trained model can do: toolworld.py solves held-out tasks of the tool world with any engine."""

from dcore_jax.evaluation.toolworld import Attempt, accuracy_table, attempt_held_out, solve, transcript

__all__ = ["Attempt", "accuracy_table", "attempt_held_out", "solve", "transcript"]
