"""`dcore distill`: self-distillation, seeds to a verified SFT corpus."""

from collections.abc import Sequence

from dcore_jax.cli.options import describe, nano_or_paper, parse_options
from dcore_jax.distill.config import DistillConfig
from dcore_jax.mesh import prepare_devices

DEFAULT = nano_or_paper("distill_nano")
DESCRIPTION = describe("distill", "Self-distillation (D-CORE, Algorithm 1): seeds to a verified SFT corpus.")


def run(arguments: Sequence[str]) -> None:
    """Parses, distills, prints the closing table."""
    config = parse_options(
        DistillConfig, arguments, description=DESCRIPTION, default_config=DEFAULT, program="dcore distill"
    )
    prepare_devices(config.mesh)
    from dcore_jax.distill import distill_seeds, summary

    print(summary(distill_seeds(config)))
