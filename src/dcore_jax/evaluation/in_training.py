"""Evaluations that a training run asks for by name: see `player.evaluators`."""

from dcore_jax.evaluation.toolworld_benchmark import ToolWorldEvaluation, attempt, parse_tasks
from dcore_jax.player.evaluators import Evaluate, Score
from dcore_jax.player.model import PlayableModel

_SHOWN = 8  # attempts written down
_TASKS = 60  # where nothing is said: an evaluation should take less time than the steps between two


def toolworld(argument: str) -> Evaluate:
    """Held-out tasks of the tool world, greedily: `toolworld`, `toolworld:200`, `toolworld:100,kinds=parallel`."""
    given = (
        argument
        if argument and "=" not in argument.split(",")[0]
        else ",".join([str(_TASKS), argument]).rstrip(",")
    )
    tasks = parse_tasks(given).tasks()

    def evaluate(model: PlayableModel) -> Score:
        config = ToolWorldEvaluation(tasks=given, max_length=min(1024, model.max_length))
        attempts = attempt(model, tasks, config)
        samples = [
            {"id": a.task.id, "question": a.task.query, "turns": list(a.turns), "solved": a.solved}
            for a in attempts[:_SHOWN]
        ]
        by_state = sum(a.solved_by_state for a in attempts) / len(attempts)
        return Score(sum(a.solved for a in attempts) / len(attempts), {"by_state": by_state}, samples)

    return evaluate
