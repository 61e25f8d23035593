"""`dcore sft`: packed SFT on a mesh."""

from collections.abc import Sequence

from dcore_jax.cli.options import describe, nano_or_paper, parse_options
from dcore_jax.mesh import prepare_devices
from dcore_jax.sft.config import SFTConfig

DEFAULT = nano_or_paper("sft_nano")
DESCRIPTION = describe("sft", "Packed supervised fine-tuning on a mesh.")


def run(arguments: Sequence[str]) -> None:
    """Parses, trains, prints the closing table."""
    config = parse_options(
        SFTConfig, arguments, description=DESCRIPTION, default_config=DEFAULT, program="dcore sft"
    )
    prepare_devices(config.mesh)
    from dcore_jax.progress import log
    from dcore_jax.sft import summary, train

    log(summary(train(config)))
