"""Loading and export of Hugging Face folders: byte-equal, every tensor once, every problem named, nothing half-written."""

import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from conftest import CHECKPOINTS, torch_config, torch_model
from dcore_jax import UserError, export_hf, load_hf
from dcore_jax.checkpoint import Checkpoints
from dcore_jax.cli import export
from dcore_jax.mesh import make_mesh
from dcore_jax.models import model_config_from_hf
from dcore_jax.training import load_policy
from dcore_jax.training.run_folder import RunRecord
from dcore_jax.weights import hf_tensors, load_decoder, local_folder, magnitude, new_decoder, shardings
from dcore_jax.weights.export import export_decoder
from dcore_jax.weights.magnitude import largest_magnitudes
from dcore_jax.weights.names import parameter_values


def all_tensors(folder):
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_then_export_is_byte_equal_per_tensor(name, dtype, tmp_path):
    source = tmp_path / "source"
    torch_model(name).to(getattr(torch, dtype)).save_pretrained(source, max_shard_size="60KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    out = export_hf(load_hf(source), tmp_path / "out", source=source)
    before, after = all_tensors(source), all_tensors(out)
    assert set(before) == set(after)
    for key in before:
        assert before[key].dtype == after[key].dtype
        assert before[key].tobytes() == after[key].tobytes(), key


def test_transformers_loads_a_sharded_export_and_computes_the_same(tmp_path, checkpoints):
    import transformers

    model = load_hf(checkpoints["qwen3_tied"])
    out = export_decoder(model, tmp_path / "out", source=checkpoints["qwen3_tied"], max_shard_bytes=60_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in out.glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) > 1
    reference = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokens = np.arange(12, dtype=np.int32)[None]
    with torch.no_grad():
        np.testing.assert_allclose(model(tokens), reference(torch.tensor(tokens).long()).logits, atol=1e-4)


def test_without_a_source_the_config_is_written_from_the_model(tmp_path, checkpoints):
    out = export_hf(load_hf(checkpoints["llama"]), tmp_path / "out")
    assert load_hf(out).config == load_hf(checkpoints["llama"]).config


def test_companion_files_are_copied_and_weights_are_not(tmp_path, checkpoints):
    source = tmp_path / "source"
    shutil.copytree(checkpoints["qwen3"], source)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "merges.txt"):
        (source / name).write_text("{}")
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "model.safetensors"}})
    )
    out = export_hf(load_hf(source), tmp_path / "out", source=source, dtype="bfloat16")
    names = {p.name for p in out.iterdir()}
    assert {
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "config.json",
        "model.safetensors",
    } == names
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert {x.dtype.name for x in all_tensors(out).values()} == {"bfloat16"}


def test_a_tied_checkpoint_that_stores_its_head_keeps_it(tmp_path, checkpoints):
    source = tmp_path / "source"
    shutil.copytree(checkpoints["qwen3_tied"], source)
    tensors = all_tensors(source)
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]},
        source / "model.safetensors",
        {"format": "pt"},
    )
    out = export_hf(load_hf(source), tmp_path / "out", source=source)
    assert set(all_tensors(out)) == {*tensors, "lm_head.weight"}
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, source / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_hf(source)


def test_all_problems_are_named_at_once(tmp_path, checkpoints):
    source = tmp_path / "source"
    shutil.copytree(checkpoints["qwen3"], source)
    tensors = all_tensors(source)
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    tensors["model.layers.0.mlp.gate_proj.weight"] = tensors["model.layers.0.mlp.gate_proj.weight"][:-1]
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors["model.layers.2.mlp.up_proj.weight"].astype(
        np.int8
    )
    tensors["model.vision.weight"] = np.zeros(3, np.float32)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_hf(source)
    message = str(error.value)
    assert "4 problems" in message
    assert "\n" not in message
    assert "model.layers.1.self_attn.q_norm.weight is missing" in message
    assert "model.layers.0.mlp.gate_proj.weight has shape (79, 48), config.json makes it (80, 48)" in message
    assert "model.layers.2.mlp.up_proj.weight has dtype I8" in message
    assert "model.vision.weight is in the file but not in the model" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_named(bad, tmp_path, checkpoints):
    source = tmp_path / "source"
    shutil.copytree(checkpoints["qwen3"], source)
    tensors = all_tensors(source)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = bad
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match=r"NaN or infinite values in model.layers.2.mlp.up_proj.weight$"):
        load_hf(source)


def test_truncated_and_missing_files_are_named(tmp_path, checkpoints):
    source = tmp_path / "source"
    shutil.copytree(checkpoints["qwen3"], source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors: truncated"):
        load_hf(source)
    weights.unlink()
    with pytest.raises(UserError, match=r"no \*.safetensors file"):
        load_hf(source)
    (source / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: not found"):
        load_hf(source)
    with pytest.raises(UserError, match="no such folder"):
        load_hf(tmp_path / "nowhere")


def test_a_non_empty_folder_is_refused_and_left_alone(tmp_path, checkpoints):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        export_hf(load_hf(checkpoints["qwen3"]), out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "precious").read_text() == "mine"


def test_an_export_that_fails_midway_leaves_nothing(tmp_path, checkpoints):
    code = f"""
import resource, signal
from dcore_jax import load_hf, export_hf, UserError
model = load_hf({str(checkpoints["qwen3"])!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the disk takes 20 kB a file
try:
    export_hf(model, {str(tmp_path / "out")!r})
except UserError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "refused:" in done.stdout
    assert "could not be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "reason"), [("", "ConnectionError"), ("\nno route\nto it", "no route")])
def test_a_hub_error_is_one_line_even_without_a_text(text, reason, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError(text)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=rf"owner/model: no such folder, .* \({reason}\)$"):
        local_folder("owner/model")


@pytest.mark.parametrize("mesh", ["8", "data=2,fsdp=2,tensor=2"])
def test_weights_arrive_sharded_and_equal(mesh, tmp_path):
    source = tmp_path / "source"
    torch_model("qwen3_bias", vocab_size=128).save_pretrained(source)
    on_mesh = load_decoder(source, mesh=make_mesh(mesh))
    alone = load_hf(source)
    kernel = on_mesh.layers.attention.q.kernel.get_value()
    assert kernel.addressable_shards[0].data.size * (8 if mesh == "8" else 4) == kernel.size
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), nnx.state(on_mesh), nnx.state(alone))
    out = export_hf(on_mesh, tmp_path / "out", source=source)
    assert {k: v.tobytes() for k, v in all_tensors(out).items()} == {
        k: v.tobytes() for k, v in all_tensors(source).items()
    }


def test_host_memory_stays_under_the_model_plus_one_shard(tmp_path):
    """The growth of a process's own memory while loading, sampled every millisecond; on a CPU the model itself is part of it."""
    source = tmp_path / "source"
    torch_model(
        "qwen3", hidden_size=512, intermediate_size=2048, num_hidden_layers=16, vocab_size=8192
    ).save_pretrained(source)
    code = f"""
import gc, threading, time
from dcore_jax.weights import load_decoder

def own_memory():  # anonymous pages: the files are mapped, and their pages are the kernel's to drop
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

load_decoder({str(source)!r})  # and dropped at once: the programs that check for NaN are compiled now
gc.collect()
before, peak, done = own_memory(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, own_memory())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
model = load_decoder({str(source)!r})
done.set()
thread.join()
print(peak - before)
"""
    # glibc keeps freed blocks of up to 32 MiB for later, now more of them, now fewer: here it gives them back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    grown = int(done.stdout)
    size = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    shard = 16 * 512 * 2048 * 4  # the largest stacked parameter, in float32
    assert size > 3 * shard
    assert 0.9 * size < grown < size + shard


def with_scale(model, value):
    model.norm.scale.set_value(model.norm.scale.get_value().at[3].set(value))
    return model


@pytest.mark.parametrize("through", ["dtype", "source"])
def test_a_float16_export_that_would_overflow_is_refused_before_anything_is_written(
    through, tmp_path, checkpoints
):
    source = tmp_path / "source"
    torch_model("qwen3").to(torch.float16).save_pretrained(source)
    chosen = {"dtype": "float16"} if through == "dtype" else {"source": source}
    # 65,519 still rounds to float16's largest number, 65,504; 65,520 rounds to infinity.
    export_hf(with_scale(load_hf(checkpoints["qwen3"]), 65519.0), tmp_path / "fits", **chosen)
    for value in (65520.0, -1e5):
        model = with_scale(load_hf(checkpoints["qwen3"]), value)
        with pytest.raises(
            UserError, match=rf"model.norm.weight holds {abs(value):g}, more than float16 can"
        ) as e:
            export_hf(model, tmp_path / "out", **chosen)
        assert "layers" not in str(e.value) and "\n" not in str(e.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "fits"}
    model = load_hf(checkpoints["qwen3"])
    kernel = model.layers.mlp.down.kernel
    kernel.set_value(kernel.get_value().at[1, 5, 6].set(7e4))
    with pytest.raises(UserError, match=r"model.layers.1.mlp.down_proj.weight holds 70000"):
        export_hf(model, tmp_path / "out", **chosen)
    export_hf(model, tmp_path / "bf16", dtype="bfloat16")


@pytest.mark.parametrize("mesh", [None, "8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_exported(bad, mesh, tmp_path, checkpoints):
    model = load_decoder(checkpoints["qwen3"], mesh=mesh and make_mesh(mesh))
    kernel = model.layers.mlp.up.kernel
    kernel.set_value(kernel.get_value().at[2, 3, 4].set(bad))
    with pytest.raises(UserError, match=r"NaN or infinite values in model.layers.2.mlp.up_proj.weight$"):
        export_hf(model, tmp_path / "out", source=checkpoints["qwen3"])
    assert list(tmp_path.iterdir()) == []


def test_tensors_leave_a_mesh_layer_by_layer_and_no_device_gets_a_gathered_parameter():
    config = model_config_from_hf(torch_config("qwen3", vocab_size=128).to_dict())
    alone = new_decoder(config)
    model = nnx.merge(
        nnx.split(alone)[0],
        jax.device_put(nnx.split(alone)[1], shardings(config, make_mesh("data=2,fsdp=4"))),
    )
    kernel = model.layers.mlp.up.kernel.get_value()
    part = kernel.addressable_shards[0].data.nbytes
    assert 4 * part == kernel.nbytes
    expected = dict(hf_tensors(alone, dtype="float32"))
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    for name, tensor in hf_tensors(model):
        np.testing.assert_array_equal(tensor, expected[name])
        assert tensor.flags.c_contiguous
        made = [a for a in jax.live_arrays() if id(a) not in before]
        on_device = [shard.data.nbytes for array in made for shard in array.addressable_shards]
        assert max(on_device, default=0) <= part, name  # a device's own part, at most


def test_the_check_before_an_export_gathers_no_parameter():
    config = model_config_from_hf(torch_config("qwen3_bias", vocab_size=128).to_dict())
    model = new_decoder(config, mesh=make_mesh("data=2,fsdp=2,tensor=2"))
    for value in parameter_values(model).values():
        assert "all-gather" not in magnitude._largest.lower(value).compile().as_text()
    alone = largest_magnitudes(new_decoder(config))
    assert largest_magnitudes(model) == alone
    assert alone == {name: float(np.abs(x).max()) for name, x in hf_tensors(model)}


@pytest.fixture
def float32_run(tmp_path, checkpoints):
    """A run folder with one float32 checkpoint of a model's weights, saved on one device."""
    model, run = load_hf(checkpoints["qwen3_bias"]), tmp_path / "run"
    with closing(Checkpoints(run)) as saved:
        saved.save(7, {"params": nnx.split(model)[1]}, {})
    record = RunRecord("sft", str(checkpoints["qwen3_bias"]))
    (run / "run.json").write_text(json.dumps(dataclasses.asdict(record)))
    return run, model


@pytest.mark.parametrize("mesh", [None, "4"])
def test_a_checkpoint_is_read_onto_a_mesh_in_the_dtype_asked_for(mesh, float32_run):
    run, model = float32_run
    read, _ = load_policy(run, mesh=mesh and make_mesh(mesh), dtype="bfloat16")
    kernel = read.layers.mlp.up.kernel.get_value()
    assert len(kernel.sharding.device_set) == (4 if mesh else 1) and read.compute.dtype == jnp.bfloat16
    assert kernel.addressable_shards[0].data.nbytes * (4 if mesh else 1) == kernel.size * 2
    for ours, whole in zip(jax.tree.leaves(nnx.state(read)), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(ours, np.asarray(whole).astype(jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(load_policy(run)[0]))} == {jnp.dtype("float32")}


def test_a_checkpoint_beyond_float16_is_refused_in_it(float32_run):
    run, model = float32_run
    load_policy(run, dtype="float16")
    with closing(Checkpoints(run)) as saved:
        saved.save(8, {"params": nnx.split(with_scale(model, 1e5))[1]}, {})
    with pytest.raises(UserError, match=r"in float16, whose largest .* in model.norm.weight$"):
        load_policy(run, dtype="float16")
    with pytest.raises(UserError, match=r"model.norm.weight holds 100000, more than float16 can"):
        export.run(["--run", str(run), "--output", str(run / "hf"), "--dtype", "float16"])
    assert not (run / "hf").exists()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_export_command_reads_onto_a_mesh(dtype, float32_run, monkeypatch):
    run, model = float32_run
    monkeypatch.setattr(export, "prepare_devices", lambda mesh: None)  # the devices are there
    options = ["--run", str(run), "--output", str(run / "hf"), "--mesh", "fsdp=2,tensor=1"]
    export.run([*options, *(["--dtype", dtype] if dtype else [])])
    for name, tensor in dict(hf_tensors(model, dtype=dtype and jnp.bfloat16)).items():
        np.testing.assert_array_equal(all_tensors(run / "hf")[name], tensor)
