"""Dense decoders in Flax NNX, read from Hugging Face configs."""

from dcore_jax.models.config import ModelConfig, model_config_from_hf, read_model_config
from dcore_jax.models.decoder import Compute, Decoder, abstract_decoder

__all__ = [
    "Compute",
    "Decoder",
    "ModelConfig",
    "abstract_decoder",
    "model_config_from_hf",
    "read_model_config",
]
