"""`dcore eval toolworld`: held-out tasks of the tool world, played with any engine."""

import time
from collections.abc import Sequence

from dcore_jax.cli.options import parse_options
from dcore_jax.evaluation.toolworld_benchmark import ToolWorldEvaluation, evaluate

DESCRIPTION = "\n\n".join(
    [
        "Tasks of the tool world that no training saw: the model calls, reads what the tools answer, and calls again.",
        "A task is solved when the calls are exactly the reference's; `by_state` counts what they leave and what is reported.",
    ]
)


def run(arguments: Sequence[str]) -> None:
    """Parses, plays, writes the summary and prints its table."""
    config = parse_options(
        ToolWorldEvaluation,
        arguments,
        description=DESCRIPTION,
        default_config=lambda _: None,
        program="dcore eval toolworld",
    )
    from dcore_jax.cli.evaluate.closing import close

    began = time.monotonic()
    close(evaluate(config), config.output, began)
