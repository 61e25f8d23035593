"""`dcore rl`: DA-GRPO and its relatives on tool rewards."""

from collections.abc import Sequence

from dcore_jax.cli.options import describe, nano_or_paper, parse_options
from dcore_jax.mesh import prepare_devices
from dcore_jax.rl.config import RLConfig

DEFAULT = nano_or_paper("rl_nano")
DESCRIPTION = describe(
    "rl",
    "Reinforcement learning from tool rewards: DA-GRPO and its relatives.",
    "Options of another algorithm, engine or reward: --algorithm rest --help.",
)


def run(arguments: Sequence[str]) -> None:
    """Parses, trains, prints the closing table."""
    config = parse_options(
        RLConfig, arguments, description=DESCRIPTION, default_config=DEFAULT, program="dcore rl"
    )
    prepare_devices(config.mesh)
    from dcore_jax.progress import log
    from dcore_jax.rl import summary, train

    log(summary(train(config)))
