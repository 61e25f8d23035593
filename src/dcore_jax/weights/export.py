"""Export of a decoder as a Hugging Face folder: sharded safetensors with index, config, generation config and tokenizer files."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dcore_jax.atomic import atomic_folder
from dcore_jax.dtypes import dtype_of
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, ModelConfig
from dcore_jax.models.rope_scaling import hf_rope
from dcore_jax.progress import progress_bar
from dcore_jax.weights.load import SAFETENSORS_DTYPES, Tensors, local_folder
from dcore_jax.weights.magnitude import check_representable
from dcore_jax.weights.names import EMBEDDING, LM_HEAD, Parameter, parameter_values, parameters
from dcore_jax.weights.stop_tokens import write_stop_tokens

_WRITERS = 4  # safetensors files that are written at the same time
# Files of a source folder that are copied: all but weights, their index and config.json.
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*")


def hf_tensors(decoder: Decoder, *, dtype: Any = None) -> Iterator[tuple[str, np.ndarray]]:
    """Every Hugging Face tensor of the decoder with its name, layer by layer in the order of transformers.

    A tensor is cast and transposed on the devices, each its own part, and put together on the host; the next one is under way
    meanwhile. With several processes every process must iterate: each tensor is gathered from all of them.

    Args:
      dtype: of all tensors; by default each one's own.
    """
    yield from _tensors_in(decoder, lambda name, own: own if dtype is None else np.dtype(dtype))


def _tensors_in(
    decoder: Decoder, dtype_for: Callable[[str, np.dtype], np.dtype]
) -> Iterator[tuple[str, np.ndarray]]:
    """As `hf_tensors`, with a dtype for each name and the dtype that the tensor has in memory."""
    values, config = parameter_values(decoder), decoder.config
    rows = parameters(config)
    order: list[tuple[Parameter, int | None]] = [
        (row, None) for row in rows if not row.stacked and row.path == ("embedding",)
    ]
    order += [(row, layer) for layer in range(config.num_layers) for row in rows if row.stacked]
    order += [(row, None) for row in rows if not row.stacked and row.path != ("embedding",)]
    before: tuple[str, jax.Array] | None = None
    for row, layer in order:
        name = row.tensor if layer is None else row.tensor.format(layer=layer)
        value = values[row.path]
        stored = _as_stored(
            value,
            None if layer is None else np.int32(layer),
            transposed=row.transposed,
            dtype=dtype_for(name, np.dtype(value.dtype)),
        )
        for shard in stored.addressable_shards:
            if shard.replica_id == 0:
                shard.data.copy_to_host_async()
        if before is not None:
            yield before[0], _on_host(before[1])
        before = name, stored
    if before is not None:
        yield before[0], _on_host(before[1])


@partial(jax.jit, static_argnames=("transposed", "dtype"))
def _as_stored(
    value: Shaped[Array, "..."], layer: Any, *, transposed: bool, dtype: np.dtype
) -> Shaped[Array, "..."]:
    """One layer of a parameter (all of one that is not stacked) as Hugging Face stores it, split over the devices as before."""
    one = value if layer is None else jax.lax.dynamic_index_in_dim(value, layer, keepdims=False)
    return (one.T if transposed else one).astype(dtype)


def _on_host(value: jax.Array) -> Shaped[np.ndarray, "..."]:
    """An array on the host, put together from the devices' parts: no device ever holds more than its own."""
    if not value.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    if value.is_fully_replicated:
        return np.asarray(value)
    whole = np.empty(value.shape, value.dtype)
    for shard in value.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = np.asarray(shard.data)
    return whole


def export_decoder(
    decoder: Decoder,
    out: str | Path,
    *,
    source: str | Path | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    progress: bool = False,
) -> Path:
    """Writes a folder that transformers and vLLM load; atomically, so that a kill leaves no half-written folder.

    Args:
      out: the folder; must be missing or empty.
      source: the folder or hub id the decoder came from: its config, generation config and tokenizer files are copied, and
        each tensor is written in the dtype it has there. generation_config.json then lists every end token: see
        `stop_tokens.write_stop_tokens`. Without a source, config.json is written from the decoder's own config.
      dtype: "float32", "bfloat16" or "float16" for all tensors.
      max_shard_bytes: most bytes of one safetensors file; up to four are in host memory at a time.
      progress: show a bar.

    Returns:
      The folder.

    Raises:
      UserError: `out` exists and is not empty, the dtype is unknown, a weight is not finite or would not be in its tensor's
        dtype (nothing is written then), or a file cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; choose another --output or remove it yourself")
    one_dtype = None if dtype is None else np.dtype(dtype_of(dtype))
    dtypes: dict[str, np.dtype] = {}
    extra: list[str] = []
    if source is not None:
        source = local_folder(source)
        with ExitStack() as files:
            stored = Tensors(source, files)
            dtypes = {
                name: np.dtype(SAFETENSORS_DTYPES[stored.dtype(name)])
                for name in stored.names()
                if stored.dtype(name) in SAFETENSORS_DTYPES
            }
        # Some tied checkpoints store the head too; then the export stores it as well, so that both hold the same tensors.
        extra = [LM_HEAD] if decoder.config.tie_word_embeddings and LM_HEAD in dtypes else []
    dtypes = {name: one_dtype or dtypes.get(name, own) for name, own in _own_dtypes(decoder).items()}
    check_representable(decoder, dtypes, where=f"{out}: not written")
    # One process writes; the others iterate over the tensors with it, see hf_tensors.
    writes = jax.process_index() == 0
    tensors = _with_dtypes(decoder, dtypes, extra)
    try:
        with atomic_folder(out) if writes else nullcontext(out) as folder:
            most = _write_shards(decoder, tensors, folder, extra, max_shard_bytes, writes, progress)
            if writes:
                _write_companions(decoder.config, folder, source, most)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: could not be written ({error}); nothing was left there") from None
    if not all(value.is_fully_addressable for value in jax.tree.leaves(parameter_values(decoder))):
        multihost_utils.sync_global_devices("dcore_jax export")
    return out


def _own_dtypes(decoder: Decoder) -> dict[str, np.dtype]:
    """The dtype of every tensor in memory, by its Hugging Face name."""
    values, config = parameter_values(decoder), decoder.config
    return {
        name: np.dtype(values[row.path].dtype)
        for row in parameters(config)
        for name in row.tensor_names(config.num_layers)
    }


def _with_dtypes(
    decoder: Decoder, dtypes: dict[str, np.dtype], extra: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by name in the dtypes of `dtypes`; with `extra` the tied head at the end."""
    embedding = None
    for name, array in _tensors_in(decoder, lambda name, own: dtypes[name]):
        if name == EMBEDDING and extra:
            embedding = array
        yield name, array
    if embedding is not None:
        yield LM_HEAD, embedding


def _write_shards(
    decoder: Decoder,
    tensors: Iterator,
    folder: Path,
    extra: list[str],
    max_bytes: int,
    writes: bool,
    progress: bool,
) -> np.dtype:
    """Writes the safetensors files and their index; returns the dtype of most of the weights."""
    count = sum(len(row.tensor_names(decoder.config.num_layers)) for row in parameters(decoder.config)) + len(
        extra
    )
    shards: list[list[str]] = []
    sizes: list[int] = []
    pending: dict[str, np.ndarray] = {}
    used: dict[np.dtype, int] = {}
    writing: list[Future[None]] = []

    def flush() -> None:
        if pending:
            shards.append(list(pending))
            sizes.append(sum(x.nbytes for x in pending.values()))
            if writes:
                if len(writing) == _WRITERS:  # no more shards than that are in host memory
                    writing.pop(0).result()
                # A temporary name: the final one contains the number of shards, which is not known yet.
                part = folder / f"part-{len(shards)}"
                writing.append(threads.submit(save_file, dict(pending), part, metadata={"format": "pt"}))
            pending.clear()

    bar = progress_bar(count, desc="exporting", unit="tensor", transient=True, disable=not progress)
    with ThreadPoolExecutor(_WRITERS) as threads:
        for name, array in tensors:
            if pending and sum(x.nbytes for x in pending.values()) + array.nbytes > max_bytes:
                flush()
            pending[name] = array
            used[array.dtype] = used.get(array.dtype, 0) + array.size
            bar.update()
        flush()
        for future in writing:
            future.result()
    bar.close()
    if writes:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        names = ["model.safetensors"] if len(shards) == 1 else names
        for i, name in enumerate(names):
            os.replace(folder / f"part-{i + 1}", folder / name)
        if len(shards) > 1:
            weight_map = {tensor: names[i] for i, shard in enumerate(shards) for tensor in shard}
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return max(used, key=lambda dtype: used[dtype])


def _write_companions(config: ModelConfig, folder: Path, source: Path | None, dtype: np.dtype) -> None:
    """Writes config.json with this dtype, copies the source's other files, and lists every end token of its model."""
    fields = hf_config(config)
    if source is not None:
        fields = json.loads((source / "config.json").read_text())
        for pattern in _COMPANIONS:
            for path in source.glob(pattern):
                if path.name != "config.json" and not path.name.endswith(".safetensors.index.json"):
                    shutil.copyfile(path, folder / path.name)
    fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = dtype.name
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    if source is not None:
        write_stop_tokens(folder)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Hugging Face `config.json` for a ModelConfig; `model_config_from_hf` reads them back to an equal one."""
    architecture = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
    fields = {
        "architectures": [architecture[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": hf_rope(config.rope_theta, config.rope_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "dtype": "float32",
    }
    if config.model_type != "qwen2":
        fields["attention_bias"] = config.qkv_bias
    if config.model_type == "llama":
        fields["mlp_bias"] = config.mlp_bias
    return fields
