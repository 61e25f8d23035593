"""Whole LoRA runs: SFT and RL, resumed, merged, exported, and their weights on the way to vLLM."""

import dataclasses
import importlib
import json
import sys
import types

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from dcore_jax import UserError
from dcore_jax.cli import export as export_command
from dcore_jax.cli import sft as sft_command
from dcore_jax.engines.vllm.canary import Canary, EngineLogprobs, ReferenceModel, check_canary
from dcore_jax.engines.vllm.snapshots import Snapshots
from dcore_jax.lora import LoraConfig, adapted_decoder, frozen_base, new_adapters, partition
from dcore_jax.mesh import make_mesh
from dcore_jax.metrics import read_metrics
from dcore_jax.models import Compute, read_model_config
from dcore_jax.nano import NanoConfig, embedded_model
from dcore_jax.rl import RLConfig
from dcore_jax.rl import train as train_rl
from dcore_jax.sft import PackingConfig, SFTConfig
from dcore_jax.sft import train as train_sft
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig, TrainSetup, load_policy
from dcore_jax.training.policy import load_adapters
from test_lora import rounded_by_hand
from test_rl_run import config_for

QLORA = LoraConfig(rank=4, alpha=8.0, quantize="nf4")
RATE = OptimizerConfig(learning_rate=2e-2, schedule="constant", warmup=0.0)
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 48)).astype(np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return embedded_model(tmp_path_factory.mktemp("model"), NanoConfig(hidden=64, layers=1), seed=0)


def sft_config(model, output, steps):
    return SFTConfig(
        model=str(model),
        data=("toolworld:40,subtasks=1-2",),
        output=str(output),
        mesh="1",
        steps=steps,
        rows=4,
        packing=PackingConfig(length=384),
        lora=QLORA,
        optimizer=RATE,
        compute=ComputeConfig(dtype="float32", remat="none"),
        checkpoint=CheckpointConfig(every=2),
    )


@pytest.fixture(scope="module")
def sft_run(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    train_sft(sft_config(model, output, 4))
    return output


def bits(run):
    adapters, *_ = load_adapters(run)
    return {path: np.asarray(leaf.get_value()).tobytes() for path, leaf in nnx.to_flat_state(adapters)}


def logits_of_transformers(folder, tokens=TOKENS):
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return found(torch.from_numpy(tokens).long()).logits.numpy()


def test_an_sft_run_trains_adapters_alone_says_so_and_resumes_bit_for_bit(model, sft_run, tmp_path, capsys):
    found = [row["loss"] for row in read_metrics(sft_run / "metrics.jsonl")]
    assert found[-1] < found[0] - 0.1
    again = tmp_path / "again"
    train_sft(sft_config(model, again, 2))
    text = capsys.readouterr().out
    assert "lora      rank 4, alpha 8 on 7 matrices a layer: 4,864 parameters are trained (" in text
    assert "of the model's), the base is frozen in nf4, " in text
    train_sft(sft_config(model, again, 4))
    assert [row["loss"] for row in read_metrics(again / "metrics.jsonl")] == found
    assert bits(again) == bits(sft_run)
    # Adapters and their two moments in float32, and nothing of the base.
    files = [path for path in (sft_run / "checkpoints" / "4").rglob("*") if path.is_file()]
    assert (
        3 * 4 * 4864
        < sum(path.stat().st_size for path in files)
        < 0.35 * (model / "model.safetensors").stat().st_size
    )
    assert json.loads((sft_run / "run.json").read_text())["lora"]["quantize"] == "nf4"


def test_a_merged_export_equals_base_plus_adapters(model, sft_run, tmp_path):
    config = sft_config(model, sft_run, 4)
    setup = TrainSetup(
        model, make_mesh("1"), compute=config.compute, optimizer=config.optimizer, updates=4, seed=0, lora=config.lora,
    )  # fmt: skip
    adapters, lora, folder = load_adapters(sft_run)
    assert (lora, folder) == (QLORA, model)
    theirs = nnx.jit(lambda m: m(TOKENS))(nnx.merge(setup.graph, adapters, setup.load_frozen()))
    merged, _ = load_policy(sft_run)
    np.testing.assert_allclose(nnx.jit(lambda m: m(TOKENS))(merged), theirs, atol=2e-5)
    export_command.run(["--run", str(sft_run), "--output", str(tmp_path / "merged"), "--dtype", "float32"])
    np.testing.assert_allclose(logits_of_transformers(tmp_path / "merged"), theirs, atol=1e-4)

    export_command.run(["--run", str(sft_run), "--output", str(tmp_path / "adapter"), "--adapter"])
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["peft_type"]) == (4, 8.0, "LORA")
    assert fields["base_model_name_or_path"] == str(model)
    parts = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    base, whole = load_file(model / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert len(parts) == 14
    for name, weight in base.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in parts:
            update = parts[f"{module}.lora_B.weight"] @ parts[f"{module}.lora_A.weight"]
            weight = rounded_by_hand(weight.astype(np.float32)) + 2.0 * update
        np.testing.assert_allclose(whole[name], weight.astype(np.float32), atol=1e-6, err_msg=name)


def test_mistakes_take_one_line(model, sft_run, tmp_path):
    with pytest.raises(UserError, match=r"--lora.alpha is no option here: it is for --lora.rank above 0"):
        sft_command.run(["--lora.alpha", "8"])
    changed = dataclasses.replace(sft_config(model, sft_run, 4), lora=dataclasses.replace(QLORA, rank=8))
    with pytest.raises(UserError, match=r"lora.rank: 4 -> 8"):
        train_sft(changed)
    with pytest.raises(UserError, match=r"--dtype bfloat16: an adapter is written as it was trained"):
        export_command.run(
            ["--run", str(sft_run), "--output", str(tmp_path / "x"), "--adapter", "--dtype", "bfloat16"]
        )
    with pytest.raises(UserError, match=r"reference_on_host changes nothing with lora.rank"):
        RLConfig(lora=QLORA, reference_on_host=True)


@pytest.mark.slow
def test_an_rl_run_moves_the_sampler_and_measures_its_drift_from_the_base(model, tmp_path, capsys):
    config = config_for(model, tmp_path / "whole", lora=QLORA, steps=3, optimizer=RATE)
    assert config.algorithm.needs_reference
    train_rl(config)
    assert "lora      rank 4, alpha 8 on 7 matrices a layer: 4,864" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    # The engine samples from base plus adapters: its log-probabilities are those of the trainer's unmerged forward pass.
    assert max(row["engine_gap_max"] for row in rows) < 1e-4
    assert [row["weight_version"] for row in rows] == [0, 1, 2]
    drift = [row["ref_kl"] for row in rows]
    assert 0 < drift[0] < drift[-1] and rows[-1]["gradient_norm"] > 0
    adapters, *_ = load_adapters(tmp_path / "whole")
    moved = {path: np.abs(np.asarray(leaf.get_value())).max() for path, leaf in nnx.to_flat_state(adapters)}
    assert all(size > 0 for size in moved.values())
    # Stopped after each step and started again, it is the same run.
    for steps in (1, 3):
        train_rl(dataclasses.replace(config, output=str(tmp_path / "again"), steps=steps))
    assert bits(tmp_path / "again") == bits(tmp_path / "whole")


def worker():
    """The module that runs inside vLLM's workers, with stand-ins for what it imports of vLLM."""
    names = (
        "vllm",
        "vllm.distributed",
        "vllm.distributed.weight_transfer",
        "vllm.distributed.weight_transfer.base",
    )
    names += (
        "vllm.distributed.weight_transfer.factory",
        "vllm.model_executor",
        "vllm.model_executor.model_loader",
    )
    names += ("vllm.model_executor.model_loader.reload",)
    made = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    stand_in = type("StandIn", (), {"__class_getitem__": classmethod(lambda cls, _: cls), "_registry": {}})
    stand_in.register_engine = classmethod(lambda *_: None)
    for module in made.values():
        module.__getattr__ = lambda _: stand_in  # type: ignore[method-assign]
    sys.modules.update(made)
    try:
        return importlib.import_module("dcore_jax.engines.vllm.worker.dcore_vllm_worker")
    finally:
        for name in made:
            del sys.modules[name]


def test_vllm_gets_adapters_alone_and_the_canary_sees_that_its_sampler_moved(model, tmp_path):
    """The server's side is real: its loader's tensors in transformers' model stand for vLLM's."""
    config = read_model_config(model)
    graph, shapes = nnx.split(adapted_decoder(config, Compute(), QLORA))
    frozen = frozen_base(model, config, Compute(), QLORA, make_mesh("1"))
    start = new_adapters(partition(shapes)[0], jax.random.PRNGKey(0))
    snapshots, canary = Snapshots(tmp_path, "run", "float32"), Canary(config.vocab_size)
    reference_model, references, folders = ReferenceModel(canary), [], []
    for version, adapters in enumerate((start, jax.tree.map(lambda x: x + 0.02, start))):
        decoder = nnx.merge(graph, adapters, frozen)
        references.append(reference_model.reference(reference_model.decoder(decoder)))
        folders.append(snapshots.write(decoder, f"v{version}"))
    (_, base), (payload, same_base) = folders
    assert base == same_base
    sent = sum(path.stat().st_size for path in payload.iterdir())
    assert sent < 0.1 * sum(path.stat().st_size for path in base.iterdir())

    def served(snapshot):
        found = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        tensors = dict(worker().merged_tensors(str(base), str(snapshot)))
        found.load_state_dict(tensors, strict=False)
        with torch.no_grad():
            logits = found(torch.tensor([canary.ids])).logits[0]
        prompt = torch.log_softmax(logits[:-1], -1)[range(63), list(canary.ids[1:])].tolist()
        return EngineLogprobs(prompt, 7, float(torch.log_softmax(logits[-1] / 0.5, -1)[7]))

    rest = {"dtype": "float32", "version": 1, "name": "server"}
    assert check_canary(served(payload), references[1], references[0], **rest) < 1e-5
    with pytest.raises(UserError, match=r"changed nothing|nats off"):
        check_canary(served(folders[0][0]), references[1], references[0], **rest)
    snapshots.close(payload)
    assert not base.exists() and not payload.exists()
