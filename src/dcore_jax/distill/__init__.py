"""Self-distillation (D-CORE, arXiv 2602.02160, section 3.1, Algorithm 1): seed samples to a verified SFT corpus."""

from dcore_jax.distill.sample import KINDS, Kind, Outcome, SeedSample

__all__ = ["KINDS", "Kind", "Outcome", "SeedSample"]
