"""Loading of Hugging Face safetensors onto the mesh.

Every process reads only the slices that its own devices hold, one device shard of one parameter at a time, so that host memory
stays below the model's size plus one shard. All problems of a checkpoint are collected and raised together.
"""

import json
import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError, safe_open

from dcore_jax.errors import UserError, first_line
from dcore_jax.models import Compute, Decoder, ModelConfig, abstract_decoder, read_model_config
from dcore_jax.progress import progress_bar
from dcore_jax.weights.magnitude import shorten
from dcore_jax.weights.names import (
    EMBEDDING,
    LM_HEAD,
    Parameter,
    parameter_values,
    parameters,
    shardings,
    state_from_rows,
    weight_files,
)

# Dtypes of tensors as safetensors files name them.
SAFETENSORS_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
# Buffers in old checkpoints that this decoder computes itself.
_COMPUTED_BUFFERS = (".rotary_emb.inv_freq", ".self_attn.masked_bias", ".self_attn.bias")


# The nano base that travels with the package; how it was made: nano/base/README.md.
PACKAGED = {"nano-base": Path(__file__).parents[1] / "nano" / "base"}


def local_folder(source: str | Path) -> Path:
    """The local folder of a model: `source` itself, a name of PACKAGED, or a hub id downloaded to the hub's cache.

    Raises:
      UserError: neither a folder nor a model on the hub.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if str(source) in PACKAGED:
        return PACKAGED[str(source)]
    if path.exists():
        raise UserError(f"{path}: not a folder; --model wants a Hugging Face folder or hub id")
    if len(path.parts) != 2 or path.is_absolute() or str(source).startswith("."):
        raise UserError(f"{path}: no such folder; --model wants a Hugging Face folder or hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(source), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
            )
        )
    except Exception as error:  # the hub's client raises many types; with each there is no model to load
        raise UserError(
            f"{source}: no such folder, and the hub did not give it ({first_line(error)})"
        ) from None


class Tensors:
    """The tensors of a folder's safetensors files by name, read slice by slice.

    Args:
      folder: a Hugging Face folder.
      files: keeps the files open.

    Raises:
      UserError: there is no safetensors file, the index cannot be read, or a file is truncated. What else is wrong is in
        `problems`.
    """

    def __init__(self, folder: Path, files: ExitStack):
        self.problems: list[str] = []
        self._files: dict[str, safe_open] = {}
        paths = weight_files(folder)
        if not paths:
            raise UserError(f"{folder}: no *.safetensors file in it")
        index = folder / "model.safetensors.index.json"
        if index.exists():
            try:
                named = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, KeyError) as error:
                raise UserError(f"{index}: not a safetensors index ({error})") from None
            self.problems += [
                f"{index.name} names {name}, which is missing"
                for name in sorted(named - {p.name for p in paths})
            ]
            # The folder may hold other safetensors files too, such as adapters or a consolidated copy.
            paths = [path for path in paths if path.name in named]
        for path in paths:
            try:
                file = files.enter_context(safe_open(path, "np"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: truncated or no safetensors file ({error})") from None
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name in self._files:
                    self.problems.append(f"tensor {name} is stored twice")
                self._files[name] = file

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return self._files[name].get_slice(name).get_dtype()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        whole = self._files[name].get_slice(name)
        return whole[index] if index else whole[:]


def load_decoder(
    source: str | Path, *, compute: Compute | None = None, mesh: Mesh | None = None, progress: bool = False
) -> Decoder:
    """Loads a Hugging Face folder or hub id.

    Args:
      compute: how the decoder is run; by default in float32.
      mesh: parameters are sharded over it by the sharding table; without one they are on the first device.
      progress: show a bar.

    Raises:
      UserError: everything that is wrong with the checkpoint, in one line: missing, unknown or misshapen tensors, dtypes that
        are no floating point numbers, truncated files, NaN or infinite weights.
    """
    folder = local_folder(source)
    config = read_model_config(folder)
    graph, _ = nnx.split(abstract_decoder(config, compute))
    dtype = (compute or Compute()).param_dtype
    values = load_parameters(folder, config, dtype_of=lambda _: dtype, mesh=mesh, progress=progress)
    return nnx.merge(graph, state_from_rows(values))


def load_parameters(
    folder: Path,
    config: ModelConfig,
    *,
    dtype_of: Callable[[Parameter], Any],
    mesh: Mesh | None = None,
    convert: Callable[[Parameter, jax.Array], dict[tuple[str, ...], jax.Array]] | None = None,
    progress: bool = False,
) -> dict[tuple[str, ...], jax.Array]:
    """The parameters of a Hugging Face folder by their path in the Decoder, one after the other, the largest first.

    Args:
      dtype_of: what each is read as.
      mesh, progress: as in `load_decoder`.
      convert: what becomes of a parameter as soon as it is on its devices, before the next is read; may donate it.

    Raises:
      UserError: as `load_decoder`.
    """
    shapes = parameter_values(abstract_decoder(config))
    with ExitStack() as files:
        tensors = Tensors(folder, files)
        _check(config, tensors, shapes, folder)
        rows = parameters(config)
        if mesh is not None:
            placement = dict(nnx.to_flat_state(shardings(config, mesh)))
        else:
            placement = {row.path: nnx.Param(SingleDeviceSharding(jax.devices()[0])) for row in rows}
        values: dict[tuple[str, ...], jax.Array] = {}
        broken: list[str] = []
        # The largest first: its shard is then on the host while most of the model is not loaded yet, which keeps the peak low.
        largest_first = sorted(rows, key=lambda row: -math.prod(shapes[row.path].shape))
        bar = progress_bar(len(rows), desc="loading", unit="tensor", transient=True, disable=not progress)
        for row in largest_first:
            abstract = jax.ShapeDtypeStruct(shapes[row.path].shape, dtype_of(row))
            value, staged = _read_parameter(row, tensors, abstract, placement[row.path].get_value())
            broken += _non_finite(row, value, config.num_layers)
            values |= {row.path: value} if convert is None else convert(row, value)
            del value
            _await_release(staged)
            bar.update()
        bar.close()
        if broken:
            raise UserError(f"{folder}: NaN or infinite values in {shorten(broken)}")
    return values


def new_decoder(
    config: ModelConfig, *, compute: Compute | None = None, seed: int = 0, mesh: Mesh | None = None
) -> Decoder:
    """A decoder with random weights, normal with standard deviation `initializer_range`; the same on every mesh."""

    def make() -> nnx.State:
        return nnx.state(Decoder(config, compute=compute, rngs=nnx.Rngs(params=seed)), nnx.Param)

    graph, _ = nnx.split(abstract_decoder(config, compute))
    out_shardings = shardings(config, mesh) if mesh is not None else None
    return nnx.merge(graph, jax.jit(make, out_shardings=out_shardings)())


def _check(config: ModelConfig, tensors: Tensors, shapes: dict, folder: Path) -> None:
    """Raises UserError with every tensor that is missing, unknown, or of a wrong shape or dtype."""
    problems = list(tensors.problems)
    expected: dict[str, tuple[int, ...]] = {}
    for row in parameters(config):
        shape = shapes[row.path].shape[1:] if row.stacked else shapes[row.path].shape
        for name in row.tensor_names(config.num_layers):
            expected[name] = shape[::-1] if row.transposed else shape
    found = tensors.names()
    problems += [f"{name} is missing" for name in expected if name not in found]
    for name in sorted(found - set(expected)):
        if name == LM_HEAD and config.tie_word_embeddings:
            if not _same_tensor(tensors, LM_HEAD, EMBEDDING):
                problems.append(f"{LM_HEAD} differs from {EMBEDDING}, but config.json ties them")
        elif not name.endswith(_COMPUTED_BUFFERS):
            problems.append(f"{name} is in the file but not in the model")
    for name in sorted(found & set(expected)):
        if tensors.shape(name) != expected[name]:
            problems.append(f"{name} has shape {tensors.shape(name)}, config.json makes it {expected[name]}")
        if tensors.dtype(name) not in SAFETENSORS_DTYPES:
            problems.append(
                f"{name} has dtype {tensors.dtype(name)}, not one of {', '.join(SAFETENSORS_DTYPES)}"
            )
    if problems:
        raise UserError(f"{folder}: {len(problems)} problems: {shorten(problems)}")


def _same_tensor(tensors: Tensors, a: str, b: str) -> bool:
    if b not in tensors.names() or tensors.shape(a) != tensors.shape(b):
        return False
    rows = 4096  # at a time: embeddings are the largest tensors of a model
    length = tensors.shape(a)[0]
    parts = (slice(i, min(i + rows, length)) for i in range(0, length, rows))
    return all(np.array_equal(tensors.read(a, (part,)), tensors.read(b, (part,))) for part in parts)


def _read_parameter(
    row: Parameter, tensors: Tensors, abstract: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding
):
    """A parameter on its devices, and weak references to the host arrays that it was copied from."""
    staged: list[weakref.ref[np.ndarray]] = []

    def shard(index: Any) -> np.ndarray:
        starts = [s.indices(n) for s, n in zip(index, abstract.shape)]
        out = np.empty([stop - start for start, stop, _ in starts], abstract.dtype)
        if not row.stacked:
            out[...] = _oriented(row, tensors.read(row.tensor, _stored(row, index)))
        else:
            for i, layer in enumerate(range(*starts[0])):
                stored = tensors.read(row.tensor.format(layer=layer), _stored(row, index[1:]))
                out[i] = _oriented(row, stored)
        staged.append(weakref.ref(out))
        return out

    return jax.make_array_from_callback(abstract.shape, sharding, shard), staged


def _await_release(staged: list[weakref.ref[np.ndarray]], seconds: float = 0.05) -> None:
    """Waits up to `seconds` until the runtime's threads have released host arrays that are on the device.

    On a busy machine they are late, and the next parameter would be read while the last one's shard still takes memory.
    """
    end = time.monotonic() + seconds
    while any(shard() is not None for shard in staged) and time.monotonic() < end:
        time.sleep(0.001)


def _stored(row: Parameter, index: tuple[slice, ...]) -> tuple[slice, ...]:
    """The index into the stored tensor for an index into ours."""
    return index[::-1] if row.transposed else index


def _oriented(row: Parameter, x: np.ndarray) -> np.ndarray:
    """A stored tensor in our orientation."""
    return x.T if row.transposed else x


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
    """Whether each entry along the first axis (a layer, for stacked parameters) is finite."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _non_finite(row: Parameter, value: jax.Array, num_layers: int) -> Iterator[str]:
    """Names of the parameter's tensors that hold NaN or infinite values."""
    finite = _finite(value)
    if jax.device_get(jax.jit(jnp.all)(finite)):
        return
    names = row.tensor_names(num_layers)
    if row.stacked and finite.is_fully_addressable:
        yield from (names[i] for i in np.flatnonzero(~np.asarray(finite)))
    else:
        yield row.tensor.format(layer="*")
