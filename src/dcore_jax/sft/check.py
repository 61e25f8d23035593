"""The check of a finished run: its export computes what the run does."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dcore_jax import load_hf
from dcore_jax.atomic import atomic_folder
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder
from dcore_jax.training import load_policy
from dcore_jax.weights import export_decoder


def check_export(run: Path, out: Path) -> str:
    """Exports the run's latest checkpoint, loads it again and compares logits on random tokens; with torch, transformers' too.

    The export has the dtype of the run's parameters, whatever the model had before. `out` appears only when it is whole and the
    comparison held.

    Raises:
      UserError: a logit differs by more than 1e-4; `out` exists.
    """
    if out.exists():
        raise UserError(f"{out}: exists; choose another folder or remove it yourself")
    decoder, source = load_policy(run)
    with atomic_folder(out) as unchecked:
        dtype = jnp.dtype(decoder.compute.param_dtype).name
        export_decoder(decoder, unchecked, source=source, dtype=dtype)
        lines = _comparisons(decoder, unchecked)
    return f"exported to {out}\n" + "\n".join(lines)


def _comparisons(decoder: Decoder, out: Path) -> list[str]:
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (2, 64)).astype(np.int32)
    expected = np.asarray(decoder(tokens))
    lines = [_compare("dcore_jax.load_hf", np.asarray(load_hf(out)(tokens)), expected)]
    try:
        import torch
        import transformers
    except ImportError:
        lines.append("transformers: not compared, torch is not installed")
    else:
        with torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="float32")
            logits = model(torch.tensor(tokens).long()).logits.numpy()
        lines.append(_compare("transformers", logits, expected))
    return lines


def _compare(name: str, logits: np.ndarray, expected: np.ndarray) -> str:
    error = float(np.abs(logits - expected).max())
    if not error <= 1e-4:
        raise UserError(f"{name}: logits of the export differ from the run's by {error:.2g}")
    return f"{name}: largest difference of {expected.size:,} logits {error:.1g}"
