"""`dcore plan`: FLOPs against a count of the program's own products, memory against a process that runs it, changes, options."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcore_jax import UserError, aot
from dcore_jax.aot import topology
from dcore_jax.cli import main
from dcore_jax.cli.plan import run
from dcore_jax.lora import LoraConfig
from dcore_jax.mesh import parse_mesh
from dcore_jax.plan import Setting, Workload, device_named, make_plan
from dcore_jax.plan.parts import argument_parts
from dcore_jax.plan.plan import recipe_steps, step_phases
from dcore_jax.plan.roofline import Phase, Rates, recipe_cost
from dcore_jax.plan.work import Work
from dcore_jax.rl.config import RLConfig, RolloutConfig
from dcore_jax.sft.config import PackingConfig, SFTConfig
from dcore_jax.target import Target, compiling_for
from dcore_jax.training import ComputeConfig

GIB = 2**30


@pytest.fixture(autouse=True)
def _no_target_compiler(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    monkeypatch.setattr(topology, "_CUDA_PACKAGES", ())


def small_model(**different):
    shape = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    return dataclasses.replace(aot.model_of("0.6b", layers=3), **{**shape, **different})


def sft_setting(device="cpu", mesh="1", model=None, remat="full", **different):
    fields = {
        "rows": 2,
        "packing": PackingConfig(length=256),
        "compute": ComputeConfig(dtype="float32", remat=remat),
    }
    return Setting(
        SFTConfig(**{**fields, **different}), model or small_model(), device_named(device), parse_mesh(mesh)
    )


def products(jaxpr) -> float:
    """FLOPs of every matrix product that a traced program runs: two a multiplication, loops as often as they turn."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = 1
            for axis in contracted:
                depth *= equation.invars[0].aval.shape[axis]
            total += 2.0 * equation.outvars[0].aval.size * depth
        inner = []
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    inner.append(products(part))
        if equation.primitive.name == "cond":
            total += max(inner, default=0.0)
        else:
            turns = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += turns * sum(inner)
    return total


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
def test_flops_are_those_of_the_programs_products(remat):
    setting = sft_setting(remat=remat)
    mesh = aot.mesh_for(setting.device, "1")
    with compiling_for(Target("cpu")):
        built = aot.sft_program(setting.config, setting.model).build(mesh)
        traced = built.jitted.trace(*built.arguments).jaxpr
    (phase,) = step_phases(setting, Workload(10, 256), ())
    assert phase.work.flops == pytest.approx(products(traced), rel=0.01)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize(
    ("remat", "targets"), [("none", ("q_proj", "v_proj")), ("full", ("q_proj", "down_proj"))]
)
def test_loras_flops_are_those_of_the_programs_products(remat, targets, quantize):
    lora = LoraConfig(rank=16, targets=targets, quantize=quantize)
    setting = sft_setting(remat=remat, lora=lora, model=small_model(intermediate_size=128))
    mesh = aot.mesh_for(setting.device, "1")
    with compiling_for(Target("cpu")):
        built = aot.sft_program(setting.config, setting.model).build(mesh)
        traced = built.jitted.trace(*built.arguments).jaxpr
    (phase,) = step_phases(setting, Workload(10, 256), ())
    # The head's gradient is traced; nothing reads it, and the compiler drops it (asserted in test_aot_tpu.py).
    dropped = 2 * (64 * 512) * (2 * 256)
    assert phase.work.flops == pytest.approx(products(traced) - dropped, rel=0.001)


def test_loras_useful_flops_are_four_per_frozen_weight_and_six_per_trained():
    def useful(**lora):
        (phase,) = step_phases(sft_setting(lora=LoraConfig(**lora)), Workload(10, 256), ())
        return phase.work.useful

    frozen = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + 64 * 512
    adapters = 3 * 4 * ((64 + 64) + (96 + 64))
    lora = useful(rank=4, targets=("q_proj", "down_proj"))
    assert useful() - lora == pytest.approx((2 * frozen - 6 * adapters) * 2 * 256)


def test_useful_flops_are_six_per_weight_and_token_and_twelve_per_key():
    setting = sft_setting()
    (phase,) = step_phases(setting, Workload(10, 256), ())
    model, tokens = setting.model, 2 * 256
    matrices = model.num_layers * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + 64 * 512
    keys = sum(position + 1 for position in range(256)) * 2
    assert phase.work.useful == pytest.approx(6 * matrices * tokens + 12 * 3 * 4 * 16 * keys, rel=0.01)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_plan_of_lora_holds_the_base_as_it_is_stored_and_the_moments_of_adapters_alone(quantize):
    lora = LoraConfig(rank=4, targets=("q_proj", "down_proj"), quantize=quantize)
    model = small_model(intermediate_size=128)
    compute = ComputeConfig(dtype="bfloat16", remat="full")
    setting = sft_setting(compute=compute, accumulation=2, lora=lora, model=model)
    if quantize == "none":
        with compiling_for(Target("cpu")):
            mesh = aot.mesh_for(setting.device, "1")
            parts = argument_parts(aot.sft_program(setting.config, model).build(mesh))
    else:  # the same, and what the compiler adds
        plan = make_plan(setting, Workload(10, 256))
        parts = plan.largest.parts
        assert sum(parts.values()) == plan.peak and plan.fits
        assert parts["gradients"] == parts["parameters"]
    layers, width, query, key, mlp, rank = 3, 64, 64, 32, 128, 4
    adapters = 4 * layers * rank * ((width + query) + (mlp + width))
    matrices = layers * (2 * width * query + 2 * width * key + 3 * width * mlp)
    # Codes and scales, or bfloat16.
    stored = matrices // 2 + matrices // 64 * 4 if quantize == "nf4" else 2 * matrices
    norms = layers * (2 * width + 2 * 16) + width
    assert parts["frozen_base"] == stored + 2 * 512 * width + 4 * norms
    assert parts["parameters"] == adapters
    assert 0 <= parts["moments"] - 2 * adapters <= 16  # with the optimizer's counters


def test_loras_rl_programs_hold_one_base_and_no_reference():
    rollout = RolloutConfig(group=2, max_prompt=64, max_response=64)
    compute = ComputeConfig(dtype="float32")
    config = RLConfig(prompts=4, updates=1, rollout=rollout, compute=compute, lora=LoraConfig(rank=4))
    model, mesh = small_model(), aot.mesh_for(device_named("cpu"), "1")
    base = 4 * model.num_parameters

    def parts(make):
        with compiling_for(Target("cpu")):
            return argument_parts(make(config, model).build(mesh))

    makers = aot.rl_score_program, aot.rl_update_program, aot.rl_finish_program, aot.decode_program
    found = [parts(make) for make in makers]
    adapters = 4 * 3 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    for each in found:
        assert (each["frozen_base"], each["parameters"]) == (base, adapters) and "reference" not in each
        assert 0 <= each["moments"] - 2 * adapters <= 16
    assert found[1]["gradients"] == found[2]["gradients"] == adapters
    assert found[3]["engine_weights"] == base  # merged


MEASURED = """
import ctypes, json, sys
import jax, jax.numpy as jnp
from dcore_jax import aot
from dcore_jax.mesh import make_mesh
sys.path.insert(0, sys.argv[1])
from test_plan import MEASURED_CASES, sft_setting

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

setting = sft_setting(**MEASURED_CASES[sys.argv[2]])
built = aot.sft_program(setting.config, setting.model).build(make_mesh("1"))
compiled = built.jitted.lower(*built.arguments).compile()
make = jax.jit(lambda: jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), built.arguments)).lower().compile()

jax.block_until_ready(jnp.ones(8) + 1)
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
state, batch = jax.block_until_ready(make())
for _ in range(2):
    state, metrics = jax.block_until_ready(compiled(state, batch))
print(json.dumps(status("VmHWM") - before))
"""
MEASURED_CASES = {
    # Activations, the state and the head's logits are each a large part of one of them.
    "kept": {"remat": "none", "rows": 8, "packing": PackingConfig(length=512)},
    "recomputed": {"remat": "full", "rows": 16, "packing": PackingConfig(length=512), "accumulation": 2},
    "bfloat16": {
        "compute": ComputeConfig(param_dtype="bfloat16"),
        "rows": 8,
        "packing": PackingConfig(length=512),
    },
}
for case in MEASURED_CASES.values():
    case["model"] = small_model(
        hidden_size=256, intermediate_size=768, num_heads=4, num_kv_heads=2, head_dim=64, vocab_size=16384
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("case", MEASURED_CASES)
def test_the_plan_is_within_a_tenth_of_what_a_process_takes(case):
    # Of the tests, not of a run: threads for eight virtual devices.
    inherited = {name: value for name, value in os.environ.items() if name != "NPROC"}
    environment = {**inherited, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", MEASURED, str(Path(__file__).parent), case]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    plan = make_plan(sft_setting(**MEASURED_CASES[case]), Workload(10, 256))
    assert measured > 2**27  # large beside what a process takes anyway
    assert plan.peak == pytest.approx(measured, rel=0.1)


def test_a_roofline_takes_the_slowest_of_arithmetic_memory_and_wire():
    rates = Rates(flops=100.0, bandwidth=10.0, interconnect=1.0)
    for work, wire, seconds, limit in (
        (Work(800.0, 0.0, 10.0), 1.0, 4.0, "arithmetic"),  # 800 FLOPs on two devices
        (Work(8.0, 0.0, 30.0), 1.0, 3.0, "memory"),
        (Work(8.0, 0.0, 10.0), 5.0, 5.0, "wire"),
    ):
        phase = Phase("step", 2, work, wire, devices=2)
        assert phase.limit(rates) == limit
        assert phase.seconds(rates) == 2 * seconds and phase.seconds(rates, 0.5) == 4 * seconds
    cost = recipe_cost(36.0, 1000, devices=8, price=2.5)
    assert (cost.hours, cost.chip_hours, cost.price) == (10.0, 80.0, 200.0)


def test_steps_are_those_of_the_config_or_of_its_epochs_over_the_data():
    config = SFTConfig(rows=16, epochs=3, packing=PackingConfig(length=16384))
    assert recipe_steps(config, Workload(40_000, 2048)) == 938  # 5,000 rows an epoch
    assert recipe_steps(dataclasses.replace(config, steps=7), Workload(40_000, 2048)) == 7
    assert recipe_steps(RLConfig(prompts=32, epochs=3), Workload(5000, 2048)) == 469


PARTS = {"parameters", "moments", "gradients", "activations", "logits", "engine_weights", "engine_cache"}
TINY = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip


def plan_of(arguments, folder, monkeypatch, capsys):
    monkeypatch.setattr(aot, "prepare", lambda devices: None)  # the tests' 8 devices are there already
    (folder / "config.json").write_text(json.dumps(TINY))
    main(["plan", *arguments, "--model", str(folder), "--json", str(folder / "plan.json")])
    return json.loads((folder / "plan.json").read_text()), capsys.readouterr().out


def test_a_plan_of_sft_by_command_line(tmp_path, monkeypatch, capsys):
    line = "--config sft_qwen3_8b --device v5e --mesh fsdp=2 --rows 2 --accumulation 1 --price 2 --packing.length 128 --steps 100"
    plan, text = plan_of(line.split(), tmp_path, monkeypatch, capsys)
    assert plan["fits"] is True and plan["first_change"] is None and plan["compiler"] == "XLA CPU"
    assert set(plan["parts"]) >= PARTS and sum(plan["parts"].values()) == plan["peak_bytes"]
    model = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + 512 * 64
    assert plan["parts"]["parameters"] == pytest.approx(4 * model / 2, rel=0.02)
    assert plan["parts"]["moments"] == pytest.approx(2 * plan["parts"]["parameters"], rel=0.01)
    assert plan["parts"]["gradients"] == pytest.approx(plan["parts"]["parameters"], rel=0.01)
    assert plan["device_bytes"] == int(15.75 * GIB) and plan["steps"] == 100
    assert plan["price"] == pytest.approx(plan["chip_hours"] * 2, abs=0.01)
    assert "v5e's own is not installed" in text and "fits" in text and "sent by each device" in text


@pytest.mark.slow
def test_a_plan_of_rl_that_does_not_fit_names_a_change_that_was_compiled(tmp_path, monkeypatch, capsys):
    line = (
        "--config rl_qwen3_8b --device h100 --mesh fsdp=2 --rollout.max-prompt 128 --rollout.max-response 128 "
        "--engine.slots 1024 --prompts 8 --updates 1"
    )
    plan, _ = plan_of(line.split(), tmp_path, monkeypatch, capsys)
    assert plan["fits"] is True and plan["peak_program"] == "decode"
    assert plan["parts"]["engine_weights"] > 0 and plan["parts"]["engine_cache"] > plan["peak_bytes"] // 3
    # Less of the device than 1,024 slots need, and more than half as many do.
    reserve = plan["device_bytes"] - 0.85 * plan["peak_bytes"]
    plan, text = plan_of(
        [*line.split(), "--memory-reserve", f"{reserve / 1e6}MB"], tmp_path, monkeypatch, capsys
    )
    assert plan["fits"] is False
    change = plan["first_change"]
    assert change["fits"] is True and change["text"] == "reference on the host and 512 slots"
    assert change["peak_bytes"] <= plan["usable_bytes"] < plan["peak_bytes"]
    assert "DOES NOT FIT" in text and "--engine.slots 512" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--config sft_qwen3_8b", "give one --device"),
        ("--config sft_qwen3_8b --device v9", "device 'v9' is unknown"),
        ("--config sft_qwen3_8b --device h100 --model 9b", "'9b' is no folder"),
        ("--config sft_qwen3_8b --device h100 --mesh fsdp=3", "rows=16 in accumulation=2 microbatches do not divide"),
        ("--config distill_qwen3_8b --device h100", "plans are made for SFT and RL"),
        ("--config sft_qwen3_8b --device h100 --memory-reserve 90GiB", "memory_reserve=90GiB is neither"),
        ("--config sft_qwen3_8b --device h100 --efficiency 2", "efficiency=2.0 is a share"),
        ("--device h100", "give --config"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_said_in_one_line(line, message, monkeypatch, capsys):
    monkeypatch.setattr(aot, "prepare", lambda devices: None)
    with pytest.raises(UserError, match=message):
        run(line.split())
