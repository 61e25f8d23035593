"""What `dcore plan` offers where a recipe does not fit: its order, what a change keeps, and that it can be typed."""

import dataclasses

import pytest

from dcore_jax import aot
from dcore_jax.aot import topology
from dcore_jax.cli.plan import _recipe
from dcore_jax.lora import LoraConfig
from dcore_jax.mesh import parse_mesh
from dcore_jax.plan import Setting, device_named, model_named
from dcore_jax.plan.changes import changes, first_change
from dcore_jax.plan.programs import ProgramPlan
from dcore_jax.rl.config import RLConfig, RolloutConfig
from dcore_jax.sft.config import PackingConfig, SFTConfig
from dcore_jax.training import ComputeConfig, OptimizerConfig


@pytest.fixture(autouse=True)
def _no_target_compiler(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    monkeypatch.setattr(topology, "_CUDA_PACKAGES", ())


def fake(peaks):
    """Programs of a setting, of the sizes that a function of it says."""

    def programs(setting):
        for name, peak in peaks(setting).items():
            yield ProgramPlan(name, {"workspace": peak}, "XLA CPU", 0.0, ())

    return programs


def eight_b(**changed):
    config = SFTConfig(
        rows=16, packing=PackingConfig(length=16384), compute=ComputeConfig(remat="none"), **changed
    )
    return Setting(config, aot.model_of("8b"), device_named("h100"), parse_mesh("fsdp=4"))


def test_changes_go_from_the_cheapest_to_the_dearest_and_each_keeps_those_before():
    options = [" ".join(change.options) for change in changes(eight_b())]
    moments = "--compute.remat full --accumulation {} --optimizer.moments bfloat16"
    assert options == [
        "--compute.remat attention",
        "--compute.remat full",
        "--compute.remat full --accumulation 2",
        "--compute.remat full --accumulation 4",
        moments.format(4),
        f"{moments.format(8)} --mesh fsdp=2,tensor=2",
        f"{moments.format(16)} --mesh tensor=4",
        f"{moments.format(2)} --mesh fsdp=8",
        f"{moments.format(1)} --mesh fsdp=16",
    ]


def test_on_one_chip_lora_is_offered_before_more_chips_and_chips_do_not_stand_on_it():
    bfloat16 = OptimizerConfig(moments="bfloat16")
    asked = dataclasses.replace(eight_b(optimizer=bfloat16), mesh=parse_mesh("1"))
    options = [" ".join(change.options) for change in changes(asked, "SFT step")]
    before = "--compute.remat full --accumulation 16"
    first = options.index(f"{before} --lora.rank 16")
    assert options[first - 1 : first + 3] == [
        before,
        f"{before} --lora.rank 16",
        f"{before} --lora.rank 16 --lora.quantize nf4",
        "--compute.remat full --accumulation 8 --mesh fsdp=2",
    ]
    # A LoRA run's base is put in nf4, and stays there when chips are added.
    adapted = dataclasses.replace(asked, config=dataclasses.replace(asked.config, lora=LoraConfig(rank=8)))
    last = list(changes(adapted, "SFT step"))[-1]
    assert last.setting.config.lora == LoraConfig(rank=8, quantize="nf4") and last.setting.devices > 1


@pytest.mark.parametrize("on_host", [False, True])
def test_lora_in_place_of_rls_recipe_keeps_no_reference_on_the_host(on_host):
    config = RLConfig(model="8b", prompts=8, reference_on_host=on_host)
    setting = Setting(config, aot.model_of("8b"), device_named("h100"), parse_mesh("1"))
    lora = [change for change in changes(setting, "RL update") if change.setting.config.lora]
    assert [change.setting.config.lora.quantize for change in lora] == ["none", "nf4"]
    for change in lora:
        # No option takes it out of a config file: the words say so.
        assert ("reference_on_host left out of the config file" in change.text) == on_host
        assert not change.setting.config.reference_on_host
        assert not any("reference" in option for option in change.options)  # with LoRA it is refused


@pytest.mark.parametrize(
    ("preset", "largest", "mesh"),
    [
        ("rl_qwen3_8b", "decode", "1"),
        ("rl_qwen3_8b", "RL update", "fsdp=8"),
        ("sft_qwen3_14b", "SFT step", "1"),
    ],
)
def test_the_options_of_a_change_can_be_typed_behind_the_config(preset, largest, mesh):
    """Before: RL refused --optimizer.moments, 'set it in a config file'."""
    _, config = _recipe(["--config", preset])
    setting = Setting(config, model_named(config), device_named("h100"), parse_mesh(mesh))
    offered = list(changes(setting, largest))
    for change in (offered[0], *offered[-3:]):
        asked = () if "--mesh" in change.options else ("--mesh", mesh)
        _, typed = _recipe(["--config", preset, *asked, *change.options])
        assert typed == dataclasses.replace(change.setting.config, mesh=typed.mesh)
        assert parse_mesh(typed.mesh) == change.setting.mesh


def test_the_first_change_that_fits_is_the_one_that_is_named():
    def peaks(setting):
        return {"SFT step": 100 if setting.config.accumulation < 4 else 50}

    found, tried = first_change(eight_b(), fake(peaks), 60, largest="SFT step")
    assert found is not None and found.fits and found.peak == 50
    assert found.change.text == "remat full and accumulation 4"
    assert [t.fits for t in tried] == [False, False, False, True]
    nothing, tried = first_change(eight_b(), fake(peaks), 10, largest="SFT step")
    assert nothing is None and not any(t.fits for t in tried)


def test_rl_is_offered_the_engine_off_its_reference_on_the_host_and_fewer_slots():
    config = RLConfig(rollout=RolloutConfig(staleness=1))
    setting = Setting(config, aot.model_of("8b"), device_named("h100"), parse_mesh("8"))
    updating = [change.text for change in changes(setting, "RL update")]
    assert updating[0] == "reference on the host"
    assert updating[1] == "reference on the host and engine off during the update"
    decoding = [change.text for change in changes(setting, "decode")]
    assert decoding[1:3] == ["reference on the host and 32 slots", "reference on the host and 16 slots"]
