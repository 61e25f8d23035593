"""Rotary position embedding, in the half-split layout of Hugging Face checkpoints."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dcore_jax.models.config import ModelConfig
from dcore_jax.models.rope_scaling import Llama3Scaling, YarnScaling


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Rotation per position of each pair of channels, in radians: `theta^(-2i/d)`, [head_dim / 2] float32.

    With `rope_scaling`: frequencies whose wavelength exceeds the original context are divided by `factor`, those with many turns
    within it are left unchanged, and between the two it is interpolated: by the turns (Llama 3.1) or by the channel (YaRN).

    Source: RoFormer, arXiv 2104.09864; YaRN, arXiv 2309.00071, section 3.2.
    """
    # In float32 and in transformers' order: far from the origin the last bit of a frequency shows in the logits, and models
    # were trained with these bits.
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    positions_per_radian = np.float32(config.rope_theta) ** exponent
    frequency = np.float32(1) / positions_per_radian
    if isinstance(config.rope_scaling, Llama3Scaling):
        frequency = _llama3(frequency, config.rope_scaling)
    if isinstance(config.rope_scaling, YarnScaling):
        frequency = _yarn(positions_per_radian, config, config.rope_scaling)
    return frequency.astype(np.float32)


def _llama3(frequency: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    weight = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(weight, 0.0, 1.0)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def _yarn(positions_per_radian: np.ndarray, config: ModelConfig, scaling: YarnScaling) -> np.ndarray:
    def channel(turns: float) -> float:
        """Index of the frequency, as a real number, that makes so many turns in the original context."""
        length = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.head_dim * math.log(length) / (2 * math.log(config.rope_theta))

    first, last = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    if first == last:
        last += 0.001  # a step instead of a ramp
    ramp = (np.arange(len(positions_per_radian), dtype=np.float32) - np.float32(first)) / np.float32(
        last - first
    )
    kept = 1 - np.clip(ramp, 0, 1)
    divided = 1 / (np.float32(scaling.factor) * positions_per_radian)
    return divided * (1 - kept) + 1 / positions_per_radian * kept


def rotation(
    positions: Int[Array, "batch length"], config: ModelConfig
) -> tuple[Float[Array, "batch length 1 half"], Float[Array, "batch length 1 half"]]:
    """Cosine and sine of every position's angles; always float32, since bf16 cannot tell large positions apart.

    YaRN's attention temperature is in them: both are multiplied with its factor, hence the logits with its square.
    """
    angles = positions[..., None, None].astype(jnp.float32) * inverse_frequencies(config)
    factor = 1.0 if config.rope_scaling is None else config.rope_scaling.cosine_factor
    if factor == 1.0:
        return jnp.cos(angles), jnp.sin(angles)
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    cos: Float[Array, "batch length 1 half"],
    sin: Float[Array, "batch length 1 half"],
) -> Float[Array, "batch length heads head_dim"]:
    """Rotates each pair of channels i and i + head_dim / 2 by the position's angle i."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
