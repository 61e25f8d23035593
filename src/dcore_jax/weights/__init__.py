"""Weights between Hugging Face folders and the Decoder, with one name map for loading, export and weight sync."""

from dcore_jax.weights.export import export_decoder, hf_config, hf_tensors
from dcore_jax.weights.load import load_decoder, local_folder, new_decoder
from dcore_jax.weights.names import parameters, shardings

__all__ = [
    "export_decoder", "hf_config", "hf_tensors", "load_decoder", "local_folder", "new_decoder", "parameters", "shardings",
]  # fmt: skip
