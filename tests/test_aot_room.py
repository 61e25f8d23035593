"""The aot room without a target's compiler: devices, models, and what is read from a program's text, on 8 virtual devices."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dcore_jax import aot
from dcore_jax.aot import topology
from dcore_jax.aot.hlo import largest_arrays, read_hlo
from dcore_jax.errors import UserError
from dcore_jax.mesh import make_mesh, sharding
from dcore_jax.rl.config import RLConfig, RolloutConfig
from dcore_jax.sft.config import PackingConfig, SFTConfig
from dcore_jax.training import ComputeConfig


@pytest.fixture(autouse=True)
def _no_target_compiler(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    monkeypatch.setattr(topology, "_CUDA_PACKAGES", ())


def small_model():
    shape = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    return dataclasses.replace(aot.model_of("0.6B", layers=3), **shape, num_heads=4, num_kv_heads=2)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("0.6B", 596_049_920),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("14B", 14_768_307_200),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
    ],
)
def test_a_released_models_parameters_are_those_of_its_card(name, parameters):
    assert aot.model_of(name).num_parameters == parameters


def test_what_is_unknown_is_named_with_what_is_known():
    with pytest.raises(UserError, match=r"device 'v9' is unknown; choose one of v5p, v5e, v6e, h100"):
        aot.device_of("v9")
    with pytest.raises(UserError, match=r"'9B' is no folder with a config.json and no known size"):
        aot.model_of("9B")


def test_collectives_are_counted_as_often_as_their_loop_turns():
    mesh = make_mesh("8")
    where = sharding(mesh, (None, "embed", None))

    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel.astype(jnp.bfloat16)), None), x, kernels)[
            0
        ]

    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((16, 64), jnp.bfloat16, sharding=sharding(mesh, ("batch", None)))
        kernels = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=where)
        text = jax.jit(layers, out_shardings=x.sharding).lower(x, kernels).compile().as_text()
    collectives, _ = read_hlo(text)
    assert sum(found.times for found in collectives) >= 5
    assert all(found.times % 5 == 0 and found.group == 8 and not found.in_open_loop for found in collectives)
    assert largest_arrays(text, 1)[0][0] >= 5 * 64 * 64 // 8 * 4


def test_the_sft_step_and_what_rl_holds_are_sized_by_shapes():
    model, compute = small_model(), ComputeConfig(dtype="float32")
    config = SFTConfig(rows=8, packing=PackingConfig(length=64), compute=compute)
    found = aot.compile_for("v6e", "fsdp=4,tensor=2", aot.sft_program(config, model))
    assert found.compiler == "XLA CPU" and not found.by_target_compiler
    # Parameters and two moments of float32 over 8 devices, norms over none; the batch and counters beside them.
    assert (
        3 * 4 * model.num_parameters / 8 < found.arguments < 3.3 * 4 * model.num_parameters / 8 + 8 * 64 * 16
    )
    assert found.aliased > 3 * 4 * model.num_parameters / 8 and found.temporaries > 0
    # Staleness 1: the engine samples while the policy trains, and keeps its weights and cache.
    rollout = RolloutConfig(group=2, max_prompt=64, max_response=64, staleness=1)
    rl = RLConfig(prompts=4, updates=1, rollout=rollout, compute=compute)
    mesh = aot.mesh_for(aot.device_of("v6e"), "fsdp=8")
    held = {k: aot.device_bytes(v) for k, v in aot.rl_update_program(rl, model).build(mesh).beside.items()}
    # 64 slots of 128 positions over 8 devices, keys and values of 2 heads of 16 in 3 layers.
    assert held["engine cache"] == 64 // 8 * 128 * 2 * 2 * 16 * 3 * 4
    assert held["engine weights"] == 4 * model.num_parameters  # gathered: no token waits for another device
    assert held["optimizer"] == pytest.approx(2 * held["reference"], rel=1e-3)
