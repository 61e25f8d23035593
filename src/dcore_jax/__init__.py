"""Teach language models to use tools, in JAX: packed SFT, self-distillation and DA-GRPO.

>>> model = load_hf("path/to/Qwen3-0.6B", dtype="bfloat16")  # doctest: +SKIP
>>> logits = model(tokens)  # doctest: +SKIP
"""

from pathlib import Path

from dcore_jax.errors import UserError
from dcore_jax.models import Compute, Decoder, ModelConfig

__version__ = "0.1.0"
__all__ = ["Compute", "Decoder", "ModelConfig", "UserError", "export_hf", "load_hf"]


def load_hf(
    path: str | Path, *, dtype: str = "float32", param_dtype: str | None = None, mesh=None, **compute
) -> Decoder:
    """Loads a Hugging Face folder or hub id: Qwen3, Qwen2/2.5 or Llama 3.x.

    `model(tokens, positions=None, segment_ids=None)` maps `[batch, length]` ids to `[batch, length, vocab]` float32 logits.

    Args:
      dtype: of activations and matmuls. `param_dtype` is the weights' own, by default the same.
      mesh: a `dcore_jax.mesh.make_mesh(...)`; without one everything is on the first device.
      compute: further fields of Compute, as `attention="xla"` or `remat="full"`.

    Raises:
      UserError: what is wrong with the folder, in one line.
    """
    from dcore_jax.dtypes import dtype_of
    from dcore_jax.weights import load_decoder

    settings = Compute(dtype=dtype_of(dtype), param_dtype=dtype_of(param_dtype or dtype), **compute)
    return load_decoder(path, compute=settings, mesh=mesh)


def export_hf(
    model: Decoder, out: str | Path, *, source: str | Path | None = None, dtype: str | None = None
) -> Path:
    """Writes the model as a folder that transformers and vLLM load; an existing non-empty folder is refused.

    Args:
      source: the folder the model was loaded from; its config, generation config and tokenizer files travel along and each
        tensor keeps the dtype it has there, unless `dtype` names another.

    Raises:
      UserError: the folder is not empty or cannot be written; nothing half-written is left.
    """
    from dcore_jax.weights import export_decoder

    return export_decoder(model, out, source=source, dtype=dtype)
