"""Configs: YAML and flags into frozen dataclasses, nothing unknown and nothing silent."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dcore_jax import UserError
from dcore_jax.cli.options import nano_or_paper, parse_options, refuse_repeated_flags
from dcore_jax.config import (
    config_from_dict,
    config_names,
    config_to_dict,
    differences,
    find_config,
    read_config,
    write_config,
)
from dcore_jax.distill.config import DistillConfig
from dcore_jax.mesh import prepare_devices
from dcore_jax.processes import processes_of
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig
from dcore_jax.training import OptimizerConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
KINDS = {"sft": SFTConfig, "base": SFTConfig, "rl": RLConfig, "distill": DistillConfig}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_preset_is_read_and_survives_the_round_trip(path, tmp_path):
    kind = KINDS[path.stem.partition("_")[0]]
    config = read_config(kind, path)
    write_config(config, tmp_path / "again.yaml")
    assert read_config(kind, tmp_path / "again.yaml") == config
    assert config_from_dict(kind, config_to_dict(config)) == config


def test_the_8b_preset_is_the_papers():
    config = read_config(SFTConfig, ROOT / "configs" / "sft_qwen3_8b.yaml")
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup) == (1e-5, "cosine", 0.05)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.0, 1.0)
    assert (config.epochs, config.rows, config.packing.length, config.compute.dtype) == (
        3,
        16,
        16384,
        "bfloat16",
    )
    # Microbatches change memory, not the batch. The defaults are the paper's too.
    assert dataclasses.replace(config, model="", output=SFTConfig().output, accumulation=1) == SFTConfig()


def parse(*arguments):
    return parse_options(SFTConfig, arguments, description="", default_config=lambda rest: None)


def test_flags_override_the_file_and_the_file_overrides_the_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("rows: 4\noptimizer:\n  learning_rate: 3e-4\n  warmup: 0.1\nmesh: 8\ndata: one.jsonl\n")
    config = parse("--config", str(path), "--optimizer.warmup", "0.2", "--data", "a.jsonl", "b.parquet")
    assert (config.rows, config.optimizer.learning_rate, config.optimizer.warmup) == (4, 3e-4, 0.2)
    assert (config.mesh, config.data) == ("8", ("a.jsonl", "b.parquet"))
    assert parse(f"--config={path}").data == ("one.jsonl",)
    assert parse("--mesh", "data=2,fsdp=2,tensor=2").mesh == "data=2,fsdp=2,tensor=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optimizer:\n  learning_rat: 1",
            r"unknown key optimizer.learning_rat; did you mean optimizer.learning_rate\?",
        ),
        ("zzz: 1", "unknown key zzz; known: model, data"),
        ("rows: many", "rows should be int, not 'many'"),
        ("rows: true", "rows should be int, not True"),
        ("rows: 1.5", "rows should be int, not 1.5"),
        ("optimizer:\n  learning_rate: fast", "optimizer.learning_rate should be float, not 'fast'"),
        ("loss_mask: everything", "loss_mask is 'everything'; choose one of last_turn, release"),
        ("optimizer: 3", "optimizer should hold keys and values, not 3"),
        ("data: {a: b}", "data should be a list"),
        ("rows: 3\naccumulation: 2", "rows=3 must be a positive multiple of accumulation=2"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(text, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_config(SFTConfig, path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_name_are_named(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        parse("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="--config needs a file name"):
        parse("--config")


def test_an_unknown_flag_suggests_the_nearest():
    command = [sys.executable, str(ROOT / "scripts" / "train_sft.py"), "--optimizer.learning-rat", "1e-3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--optimizer.learning-rate" in done.stdout + done.stderr


def test_differences_name_what_may_not_change_only():
    old = SFTConfig(optimizer=OptimizerConfig(learning_rate=1e-3), rows=8)
    new = SFTConfig(optimizer=OptimizerConfig(learning_rate=2e-3), rows=8, mesh="8", output="elsewhere")
    assert differences(old, new) == ["optimizer.learning_rate: 0.001 -> 0.002"]


def test_a_flag_given_twice_is_refused():
    for flags in (
        ("--data", "a", "--data", "b"),
        ("--data=a", "--data=b"),
        ("--loss_mask", "x", "--loss-mask", "y"),
    ):
        with pytest.raises(UserError, match="is given twice"):
            parse(*flags)
    with pytest.raises(UserError, match="--engine is given twice"):
        refuse_repeated_flags(RLConfig, ["--engine", "native", "--engine.name=vllm"])


def test_a_key_given_twice_and_a_file_in_another_encoding_are_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("rows: 8\noptimizer:\n  warmup: 0.1\n  warmup: 0.2\n")
    with pytest.raises(UserError, match=r"a.yaml: the key warmup is given twice \(line 3 on\)"):
        read_config(SFTConfig, path)
    path.write_bytes("output: r\u00e9sum\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.yaml: not readable as YAML: .*utf-8"):
        read_config(SFTConfig, path)


def test_the_embedded_model_by_its_name_has_the_embedded_defaults():
    default_config = nano_or_paper("sft_nano")
    for arguments in ([], ["--model", "nano"], ["--model=nano", "--steps", "3"]):
        assert default_config(arguments) == "sft_nano"
    for arguments in (["--model", "Qwen/Qwen3-8B"], ["--model=hf/"]):
        assert default_config(arguments) is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"DCORE_COORDINATOR": "host:1", "DCORE_PROCESSES": "2"},
            "give each process a DCORE_PROCESS_ID below",
        ),
        (
            {"DCORE_COORDINATOR": "host:1", "DCORE_PROCESSES": "two"},
            "DCORE_PROCESSES=two must be a whole number",
        ),
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2: .*start with srun, or unset SLURM_NTASKS"),
        (
            {"WORLD_SIZE": "2", "MASTER_ADDR": "host"},
            "WORLD_SIZE=2 .*give each process MASTER_PORT and a RANK",
        ),
        ({"DCORE_DISTRIBUTED": "1"}, "DCORE_DISTRIBUTED=1 .*set DCORE_COORDINATOR by hand"),
    ],
)
def test_a_mistake_in_the_variables_of_several_processes_is_named(variables, message, monkeypatch):
    def unknown(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", unknown)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        prepare_devices(None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, 0, None)),
        ({"SLURM_NTASKS": "1"}, (1, 0, None)),
        ({"SLURM_NTASKS": "4"}, (4, None, None)),
        ({"DCORE_COORDINATOR": "a:7", "DCORE_PROCESSES": "3", "DCORE_PROCESS_ID": "2"}, (3, 2, "a:7")),
        ({"DCORE_COORDINATOR": "a:7", "SLURM_NTASKS": "3", "DCORE_PROCESS_ID": "1"}, (3, 1, "a:7")),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"},
            (2, 1, "a:29501"),
        ),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "29500", "WORLD_SIZE": "1", "RANK": "0"}, (1, 0, None)),
    ],
)
def test_processes_are_found_by_the_variables_of_each_launcher(variables, expected):
    found = processes_of(variables)
    assert (found.count, found.index, found.coordinator) == expected
    assert found.several == (found.count > 1)


def test_a_pod_is_joined_whatever_it_counts():
    assert processes_of({"TPU_WORKER_HOSTNAMES": "a,b"}).several
    assert not processes_of({"TPU_WORKER_HOSTNAMES": "localhost"}).several


@pytest.mark.parametrize("name", config_names())
def test_every_preset_names_the_device_that_it_was_planned_for(name):
    comments = [line for line in find_config(name).read_text().splitlines() if line.startswith("#")]
    assert re.search(r"\b(H100|H200|A100|v5p|v5e|v6e|GPU|CPU)\b", "\n".join(comments))
