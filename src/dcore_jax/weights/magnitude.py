"""The largest magnitude of every tensor, and what a dtype cannot hold of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from dcore_jax.errors import UserError
from dcore_jax.models import Decoder
from dcore_jax.weights.names import parameter_values, parameters

_SHOWN = 8  # tensors that a message names


@jax.jit
def _largest(x: Float[Array, "first ..."]) -> Float[Array, "first"]:
    """Largest magnitude of each entry along the first axis (a layer, for stacked parameters); NaN where one is not finite."""
    rest = tuple(range(1, x.ndim))  # no reshape: it would gather what the tensor axis splits
    largest = jnp.max(jnp.abs(x), axis=rest).astype(jnp.float32)
    return jnp.where(jnp.isfinite(x).all(axis=rest), largest, jnp.nan)  # on a CPU XLA's maximum drops NaN


def largest_magnitudes(decoder: Decoder) -> dict[str, float]:
    """The largest |w| of every tensor by its Hugging Face name, NaN where a value is not finite; found where the shards lie."""
    values = parameter_values(decoder)
    found: dict[str, float] = {}
    for row in parameters(decoder.config):
        largest = _largest(values[row.path])
        if not largest.is_fully_addressable:
            largest = multihost_utils.process_allgather(largest, tiled=True)
        numbers = np.asarray(largest) if row.stacked else [np.max(np.asarray(largest))]
        found |= {
            name: float(x)
            for name, x in zip(row.tensor_names(decoder.config.num_layers), numbers, strict=True)
        }
    return found


def shorten(problems: list[str], most: int = _SHOWN) -> str:
    """The first problems of a list in one line, and how many more there are."""
    shown = "; ".join(problems[:most])
    return shown if len(problems) <= most else f"{shown}; and {len(problems) - most} more"


def check_finite(decoder: Decoder, *, where: str) -> dict[str, float]:
    """`largest_magnitudes`, all of them finite; raises UserError that begins with `where` and names the tensors that are not."""
    largest = largest_magnitudes(decoder)
    broken = [name for name, x in largest.items() if not np.isfinite(x)]
    if broken:
        raise UserError(f"{where}: NaN or infinite values in {shorten(broken)}")
    return largest


def check_representable(decoder: Decoder, dtypes: dict[str, np.dtype], *, where: str) -> None:
    """Refuses weights that are not finite, or would not be after the cast to their tensor's dtype.

    Args:
      dtypes: of each tensor after the cast, by its Hugging Face name.
      where: what the message begins with.

    Raises:
      UserError: naming the tensors.
    """
    largest = check_finite(decoder, where=where)
    with np.errstate(over="ignore"):
        beyond = [
            f"{name} holds {x:.6g}, more than {dtypes[name].name} can ({_limit(dtypes[name]):.6g})"
            for name, x in largest.items()
            if not np.isfinite(np.asarray(x, np.float32).astype(dtypes[name]).astype(np.float32))
        ]
    if beyond:
        raise UserError(f"{where}: {shorten(beyond)}; choose --dtype bfloat16 or float32")


def _limit(dtype: np.dtype) -> float:
    return float(jnp.finfo(dtype).max)
