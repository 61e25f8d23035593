"""Log-probabilities, entropy and cross-entropy from hidden states, without the whole logits in memory."""

from dcore_jax.kernels.cross_entropy import cross_entropy
from dcore_jax.kernels.logprobs import logprobs_and_entropy
from dcore_jax.kernels.mesh_axes import VOCAB_AXIS, WIDTH_AXIS

__all__ = ["VOCAB_AXIS", "WIDTH_AXIS", "cross_entropy", "logprobs_and_entropy"]
