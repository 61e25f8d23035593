"""The models of a run, each with its folder, tokenizer and engines."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dcore_jax.data.chat_template import ChatTemplate, chat_template
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.distill.config import DistillConfig
from dcore_jax.engines import Engine
from dcore_jax.engines.open import open_engine
from dcore_jax.mesh import make_mesh
from dcore_jax.models import read_model_config
from dcore_jax.nano.config import NANO
from dcore_jax.sft.base import base_model
from dcore_jax.weights import local_folder, stop_token_ids
from dcore_jax.weights.names import weight_files

# The files of a model's folder that decide its answers, besides the weights.
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
# Blocks hashed of each weight file: closer together than the matrices of a large model, so that each is touched.
_BLOCKS, _BLOCK_BYTES = 1024, 4096
_LONGEST_HEADER = 100_000_000  # safetensors' own limit


class ServedModel(NamedTuple):
    """A model behind its engines, ready for questions."""

    folder: Path
    template: ChatTemplate
    engines: tuple[Engine, ...]
    digest: str  # of the folder: `model_digest`

    def close(self) -> None:
        """Closes the engines."""
        for engine in self.engines:
            engine.close()


def open_model(
    source: str, config: DistillConfig, output: Path, began: datetime | None = None
) -> ServedModel:
    """Opens the model of a Hugging Face folder or hub id, or the embedded one, behind its engines.

    Args:
      began: the date and time that its chat template may write.

    Raises:
      UserError: no such model, a folder without a tokenizer or chat template, an engine that cannot serve it.
    """
    folder = base_model(config.base, mesh=config.mesh) if source == NANO else local_folder(source)
    tokenizer, digest = load_tokenizer(folder), model_digest(folder)
    template = chat_template(tokenizer, config.chat_template_kwargs, began)
    return ServedModel(folder, template, _engines(folder, tokenizer, config, output), digest)


def model_digest(folder: Path) -> str:
    """A hash that identifies a folder's model without reading gigabytes.

    Over the tokenizer, chat template and configs as a whole, and over each safetensors file's name, size, header and
    1,024 blocks spread evenly over it; a file of up to 4 MiB is read as a whole.
    """
    digest = hashlib.sha256()
    for path in filter(Path.exists, (folder / name for name in _SETTINGS)):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        step = max(size // _BLOCKS, _BLOCK_BYTES)
        with path.open("rb") as file:
            # Safetensors: the header's length in 8 bytes, then the header.
            digest.update(file.read(min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER)))
            for at in range(0, size, step):
                file.seek(at)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _engines(folder: Path, tokenizer: Any, config: DistillConfig, output: Path) -> tuple[Engine, ...]:
    from dcore_jax import load_hf

    mesh = make_mesh(config.mesh) if config.mesh else None
    engine = open_engine(
        config.engine,
        folder,
        decoder=load_hf(folder, dtype=config.dtype, mesh=mesh) if config.engine.name == "native" else None,
        max_length=config.max_length or read_model_config(folder).context_length,
        eos_token_ids=sorted(stop_token_ids(folder, tokenizer)),
        output=output,
        dtype=config.dtype,
        mesh=mesh,
    )
    return (engine,)
