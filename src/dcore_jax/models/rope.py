"""Rotary position embedding, in the half-split layout of Hugging Face checkpoints."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dcore_jax.models.config import Llama3Scaling, ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Rotation per position of each pair of channels, in radians: `theta^(-2i/d)`, [head_dim / 2] float32.

    With `rope_scaling` (Llama 3.1's rule): frequencies whose wavelength exceeds the original context are divided by `factor`,
    those with many turns within it are left unchanged, and between the two it is interpolated.

    Source: RoFormer, arXiv 2104.09864.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    if config.rope_scaling is not None:
        frequency = _llama3(frequency, config.rope_scaling)
    return frequency.astype(np.float32)


def _llama3(frequency: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    weight = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(weight, 0.0, 1.0)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def rotation(
    positions: Int[Array, "batch length"], config: ModelConfig
) -> tuple[Float[Array, "batch length 1 half"], Float[Array, "batch length 1 half"]]:
    """Cosine and sine of every position's angles; always float32, since bf16 cannot tell large positions apart."""
    angles = positions[..., None, None].astype(jnp.float32) * inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    cos: Float[Array, "batch length 1 half"],
    sin: Float[Array, "batch length 1 half"],
) -> Float[Array, "batch length heads head_dim"]:
    """Rotates each pair of channels i and i + head_dim / 2 by the position's angle i."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
