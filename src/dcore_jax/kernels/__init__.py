"""Log-probabilities, entropy and cross-entropy straight from hidden states: whole logits never exist in memory."""

from dcore_jax.kernels.cross_entropy import cross_entropy
from dcore_jax.kernels.logprobs import logprobs_and_entropy
from dcore_jax.kernels.mesh_axes import BATCH_AXES, VOCAB_AXIS, WIDTH_AXIS

__all__ = ["BATCH_AXES", "VOCAB_AXIS", "WIDTH_AXIS", "cross_entropy", "logprobs_and_entropy"]
