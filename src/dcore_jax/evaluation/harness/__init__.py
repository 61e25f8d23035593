"""Benchmarks that bring their own world: each runs in a process and with packages of its own, behind one protocol.

install.py (packages, once)  process.py (the pipe)  session.py (a task as a conversation of the player)  agents.py (who plays)
evaluate.py (the loop: play, keep, score)  worker/ (what runs in the other process; imports nothing of this package)
"""

from dcore_jax.evaluation.harness.agent_config import AgentConfig
from dcore_jax.evaluation.harness.evaluate import HarnessRun, evaluate_harness
from dcore_jax.evaluation.harness.install import install, is_installed
from dcore_jax.evaluation.harness.process import HarnessProcess
from dcore_jax.evaluation.harness.session import HarnessSession

__all__ = [
    "AgentConfig",
    "HarnessProcess",
    "HarnessRun",
    "HarnessSession",
    "evaluate_harness",
    "install",
    "is_installed",
]
