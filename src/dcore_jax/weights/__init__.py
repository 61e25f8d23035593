"""Weights between Hugging Face folders and the Decoder, with one name map for loading, export and weight sync."""

from dcore_jax.weights.export import export_decoder, hf_config, hf_tensors
from dcore_jax.weights.load import load_decoder, load_parameters, local_folder, new_decoder
from dcore_jax.weights.names import Parameter, parameters, shardings, state_from_rows
from dcore_jax.weights.stop_tokens import end_of_turn_ids, stop_token_ids

__all__ = [
    "Parameter", "end_of_turn_ids", "export_decoder", "hf_config", "hf_tensors", "load_decoder", "load_parameters",
    "local_folder", "new_decoder", "parameters", "shardings", "state_from_rows", "stop_token_ids",
]  # fmt: skip
