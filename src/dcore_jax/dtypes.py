"""The floating-point types by name, as configs, checkpoints and `config.json` spell them."""

from typing import Any, Literal

import jax.numpy as jnp

from dcore_jax.errors import check_choice

DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def dtype_of(name: str) -> Any:
    """The JAX type of a name. Raises UserError for an unknown one."""
    check_choice("dtype", name, DTYPES)
    return DTYPES[name]
