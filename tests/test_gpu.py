"""What only an accelerator can show; `pytest -m gpu` on a machine with an NVIDIA GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcore_jax.mesh import make_mesh
from dcore_jax.models.attention import attend

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_cudnn_equals_xla_in_values_and_gradients_and_keeps_segments_apart(kv_heads):
    rng = np.random.default_rng(0)
    length, heads, head_dim = 512, 8, 128

    def normal(heads):
        return jnp.asarray(rng.standard_normal((2, length, heads, head_dim)), jnp.bfloat16)

    q, k, v = normal(heads), normal(kv_heads), normal(kv_heads)
    ids = jnp.asarray(np.repeat([1, 2, 3, 0], [200, 150, 100, 62])[None].repeat(2, 0), jnp.int32)
    weight = normal(heads)

    def loss(implementation, q, k, v):
        out = attend(q, k, v, ids, implementation=implementation)
        return (out * weight).astype(jnp.float32).sum(), out

    def run(implementation):
        gradient = jax.jit(
            jax.value_and_grad(lambda *x: loss(implementation, *x), argnums=(0, 1, 2), has_aux=True)
        )
        with jax.set_mesh(make_mesh("1")):
            (_, out), gradients = gradient(q, k, v)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    for ours, reference in zip(run("cudnn"), run("xla"), strict=True):
        assert np.linalg.norm(ours - reference) < 2e-2 * np.linalg.norm(reference)

    def third_segment(k):
        return attend(q, k, v, ids, implementation="cudnn")[:, 350:450].astype(jnp.float32).sum()

    gradient = np.abs(np.asarray(jax.grad(third_segment)(k), np.float32)).sum((0, 2, 3))
    assert (gradient[350:450] > 0).any()
    assert (gradient[:350] == 0).all()
    assert (gradient[450:] == 0).all()
