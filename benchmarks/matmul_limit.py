"""The machine's own limit as a contestant of benchmarks/sft.py: a step is a square matrix product in the compute dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from contestant import serve

SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


def setup(spec: dict[str, Any]):
    side = SIDE[jax.default_backend()]
    x = jnp.ones((side, side), spec["dtype"])
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()

    def run(i: int) -> tuple[float, int]:
        product(x, x).block_until_ready()
        return 2.0 * side**3, 0  # in the loss's place: the operations of one product

    return run


if __name__ == "__main__":
    serve(setup)
