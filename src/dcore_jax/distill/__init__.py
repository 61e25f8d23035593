"""Self-distillation (D-CORE, arXiv 2602.02160, section 3.1, Algorithm 1): seed samples to a verified SFT corpus."""

from typing import TYPE_CHECKING, Any

from dcore_jax.distill.sample import KINDS, Kind, Outcome, SeedSample

if TYPE_CHECKING:
    from dcore_jax.distill.run import DistillResult, distill_seeds, summary

__all__ = [
    "KINDS",
    "DistillResult",
    "Kind",
    "Outcome",
    "SeedSample",
    "distill_seeds",
    "summary",
]


def __getattr__(name: str) -> Any:
    # The run brings engines and models along; reading seeds or a report needs neither.
    if name in ("DistillResult", "distill_seeds", "summary"):
        from dcore_jax.distill import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
