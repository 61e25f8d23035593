"""The target is said in one place: what is traced for one machine is never taken for another."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dcore_jax.errors import UserError
from dcore_jax.kernels.tiles import TOKEN_BLOCK, token_block
from dcore_jax.models.attention import attend
from dcore_jax.target import Target, compiling_for, set_target, target

PACKAGE = Path(__file__).parents[1] / "src" / "dcore_jax"


def test_the_target_is_the_machine_until_another_is_named():
    here = target()
    assert here.platform == jax.default_backend() and here.device_kind == jax.devices()[0].device_kind
    with compiling_for(Target("tpu", "TPU v5p")):
        assert target() == Target("tpu", "TPU v5p")
        with compiling_for(Target("gpu")):
            assert target().platform == "gpu"
        assert target().platform == "tpu"
    set_target(Target("gpu"))
    assert target().platform == "gpu"
    set_target(None)
    assert target() == here


def test_a_jitted_function_is_traced_anew_for_each_target():
    tokens = 2 * TOKEN_BLOCK["tpu"]
    blocks = jax.jit(lambda x: x + token_block(tokens))
    found = {}
    for platform in ("cpu", "tpu", "gpu", "cpu"):
        with compiling_for(Target(platform)):
            found[platform] = int(blocks(0))
    assert found == {name: TOKEN_BLOCK[name] for name in ("cpu", "tpu", "gpu")}


def test_attention_is_chosen_for_the_target():
    x = jnp.zeros((1, 128, 1, 128), jnp.bfloat16)
    ids = jnp.zeros((1, 128), jnp.int32)
    with pytest.raises(UserError, match="splash needs a TPU, this is cpu"):
        attend(x, x, x, ids, implementation="splash")
    with compiling_for(Target("tpu")):
        shape = jax.eval_shape(lambda q: attend(q, q, q, ids, implementation="splash"), x)
    assert shape.shape == x.shape


def test_nothing_else_asks_jax_for_its_backend():
    asking = set()
    for path in PACKAGE.rglob("*.py"):
        names = {
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        }
        if "default_backend" in names:
            asking.add(path.name)
    assert asking == {"target.py"}
