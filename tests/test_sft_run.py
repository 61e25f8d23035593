"""Whole SFT runs: killed and resumed, stopped and resumed, several processes, and every mistake in one line."""

import dataclasses
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import CORE_INSTALL
from dcore_jax import UserError, load_hf
from dcore_jax.cli import demo
from dcore_jax.config import read_config, write_config
from dcore_jax.data import packing
from dcore_jax.metrics import read_metrics
from dcore_jax.nano import NanoConfig, embedded_data, embedded_model
from dcore_jax.rl import RLConfig
from dcore_jax.sft import PackingConfig, SFTConfig, base_model, check, summary, train
from dcore_jax.training import CheckpointConfig, ComputeConfig, OptimizerConfig, load_policy
from dcore_jax.training.preemption import StopRequest
from dcore_jax.training.run_folder import (
    RunRecord,
    last_checkpoint,
    lock_run_folder,
    record_run,
    run_record,
)
from dcore_jax.weights import export_decoder

SCRIPTS = Path(__file__).parents[1] / "scripts"
STEPS = 20
CONFIG = SFTConfig(
    model="nano",
    data=("toolworld:80,subtasks=1-2",),
    mesh="1",
    steps=STEPS,
    rows=8,
    packing=PackingConfig(length=384),
    optimizer=OptimizerConfig(learning_rate=3e-3, ema_decay=0.9),
    compute=ComputeConfig(dtype="float32", remat="none"),
    checkpoint=CheckpointConfig(every=4),
    nano=NanoConfig(hidden=64, layers=1),
)
ENVIRONMENT = {**CORE_INSTALL, "PYTHONUNBUFFERED": "1"}
ENVIRONMENT.pop("NPROC", None)  # as a user's shell has it
# Eleven processes run one program: compiled once with optimisation and kept, it saves each of them more than it costs.
ENVIRONMENT.pop("XLA_FLAGS", None)


def start(output, *flags, config, environment=ENVIRONMENT):
    command = [
        sys.executable,
        str(SCRIPTS / "train_sft.py"),
        "--config",
        str(config),
        "--output",
        str(output),
        *flags,
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def wait_for_step(output, step, process):
    while not (output / "metrics.jsonl").exists() or len(read_metrics(output / "metrics.jsonl")) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "sft.yaml"
    write_config(CONFIG, path)
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, config_file):
    output = tmp_path_factory.mktemp("runs") / "whole"
    return output, finish(start(output, config=config_file))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes seconds: the runs that are processes of their own do it, and `uninterrupted`'s are looked at."""
    monkeypatch.setattr("dcore_jax.sft.run.plot_loss", lambda metrics, out: out)


def losses(output):
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]


def exported(output, folder, ema=False):
    decoder, source = load_policy(output, ema=ema)
    out = export_decoder(decoder, folder, source=source)
    return {name: x.tobytes() for name, x in load_file(out / "model.safetensors").items()}


def test_a_run_learns_and_closes_with_a_table_and_a_curve(uninterrupted):
    output, text = uninterrupted
    found = losses(output)
    assert found[-1] < 0.8 * found[0]
    for line in ("steps         20 of 20", "packing fill", "host memory", "checkpoint", "curve", "samples"):
        assert line in text
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "Training loss" in (output / "report.html").read_text(encoding="utf-8")
    row = read_metrics(output / "metrics.jsonl")[3]
    assert {
        "step",
        "loss",
        "learning_rate",
        "tokens_per_second",
        "loss_tokens_per_second",
        "packing_fill",
    } <= set(row)
    assert read_config(SFTConfig, output / "config.yaml").nano == CONFIG.nano
    assert json.loads((output / "data.json").read_text())["rejected"] == {}


def test_killed_terminated_and_interrupted_at_random_steps_and_resumed_it_equals_the_uninterrupted_run(
    uninterrupted, config_file, tmp_path
):
    """One run through SIGKILL, SIGTERM, Ctrl-C and two Ctrl-C: what each prints and saves, and that none leaves a trace."""
    output, _ = uninterrupted
    again = tmp_path / "again"
    rng = random.Random(time.time_ns())
    kill_at = rng.randint(5, 7)
    process = start(again, config=config_file)
    wait_for_step(again, kill_at, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    # A later step than any that has been written: the process that writes it listens for signals.
    stop_at = len(read_metrics(again / "metrics.jsonl")) + rng.randint(1, 2)
    process = start(again, config=config_file)
    wait_for_step(again, stop_at, process)
    process.send_signal(signal.SIGTERM)
    text = finish(process)
    assert "resuming" in text
    (saved,) = re.findall(r"SIGTERM: saved step (\d+)", text)

    interrupt_at = int(saved) + rng.randint(1, 2)
    process = start(again, config=config_file)
    wait_for_step(again, interrupt_at, process)
    process.send_signal(signal.SIGINT)
    text = finish(process)
    assert "resuming" in text
    assert "Ctrl-C: saving after the current step; press Ctrl-C again to stop at once" in text
    (saved,) = re.findall(r"Ctrl-C: saved step (\d+) of 20; start the same line again to go on", text)
    assert interrupt_at <= int(saved) < STEPS
    assert int(saved) == max(int(p.name) for p in (again / "checkpoints").iterdir() if p.name.isdigit())

    process = start(again, config=config_file)
    wait_for_step(again, int(saved) + 1, process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 130, text
    assert "stopped at once; start the same line again to go on" in text
    assert "Traceback" not in text

    text = finish(start(again, config=config_file))
    assert f"resuming {again} after step" in text
    message = f"killed after {kill_at}, stopped after {stop_at}, interrupted after {interrupt_at} and {int(saved) + 1}"
    assert losses(again) == losses(output), message
    assert exported(again, tmp_path / "a") == exported(output, tmp_path / "b"), message
    assert exported(again, tmp_path / "c", ema=True) == exported(output, tmp_path / "d", ema=True), message
    assert exported(again, tmp_path / "e") != exported(again, tmp_path / "f", ema=True)


def test_steps_alone_decide_how_long_a_run_is_and_a_finished_run_can_be_given_more(nano_folder, tmp_path):
    config = dataclasses.replace(
        CONFIG, model=str(nano_folder), data=("toolworld:6,subtasks=1",), output=str(tmp_path / "run"), rows=2
    )
    more_than_three_epochs = train(dataclasses.replace(config, steps=9))
    assert more_than_three_epochs.step == more_than_three_epochs.total_steps == 9
    longer = train(dataclasses.replace(config, steps=11))
    assert (longer.step, longer.total_steps) == (11, 11)
    with pytest.raises(UserError, match="the run was started with --steps; give it more with --steps"):
        train(dataclasses.replace(config, steps=None, epochs=9))


def test_a_finished_run_given_more_epochs_visits_each_sample_once_in_each(nano_folder, tmp_path, monkeypatch):
    visited = []
    gather = packing._gather

    def recorded(store, rows, *rest):
        visited.append([row["at"][row["at"] >= 0] for row in rows])  # a row may hold a sample of two epochs
        return gather(store, rows, *rest)

    monkeypatch.setattr(packing, "_gather", recorded)
    config = dataclasses.replace(
        CONFIG,
        model=str(nano_folder),
        data=("toolworld:6,subtasks=1",),
        output=str(tmp_path / "run"),
        rows=2,
        steps=None,
    )
    first = train(dataclasses.replace(config, epochs=2))
    second = train(dataclasses.replace(config, epochs=5))
    assert second.step == second.total_steps > first.total_steps == first.step
    assert train(dataclasses.replace(config, epochs=5)).first_loss is None
    counts = np.unique(np.concatenate([at for rows in visited for at in rows]), return_counts=True)[1]
    assert set(counts) == {5}
    with pytest.raises(UserError, match=r"rows: 2 -> 4"):
        train(dataclasses.replace(config, epochs=6, rows=4))


def test_epochs_cannot_change_while_they_are_packed(nano_folder, tmp_path, monkeypatch):
    config = dataclasses.replace(
        CONFIG,
        model=str(nano_folder),
        data=("toolworld:12,subtasks=1",),
        output=str(tmp_path / "run"),
        rows=2,
        steps=None,
    )
    monkeypatch.setattr(StopRequest, "__call__", lambda self, step: step == 2)
    assert train(dataclasses.replace(config, epochs=5)).preempted
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"has not finished its 5 epochs \(step 2\); go on with --epochs 5 first"
    ):
        train(dataclasses.replace(config, epochs=6))


def test_two_processes_of_four_devices_train_as_one(uninterrupted, config_file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path / "two"
    processes = []
    for index in range(2):
        environment = {
            **ENVIRONMENT,
            "DCORE_COORDINATOR": f"127.0.0.1:{port}",
            "DCORE_PROCESSES": "2",
            "DCORE_PROCESS_ID": str(index),
            "JAX_PLATFORMS": "cpu",
        }
        processes.append(start(output, "--mesh", "8", config=config_file, environment=environment))
    texts = [finish(process) for process in processes]
    assert "8 x cpu (fsdp 8)" in texts[0]
    assert "steps" not in texts[1]  # one process speaks
    np.testing.assert_allclose(losses(output), losses(uninterrupted[0]), atol=1e-4)


def test_a_finished_run_started_again_does_nothing(uninterrupted):
    output, _ = uninterrupted
    result = train(dataclasses.replace(CONFIG, output=str(output)))
    assert (result.step, result.first_loss) == (STEPS, None)
    assert "steps         20 of 20" in summary(result)
    assert len(losses(output)) == STEPS


def test_the_export_gives_the_logits_of_the_run(uninterrupted, tmp_path):
    import torch
    import transformers

    output, _ = uninterrupted
    decoder, source = load_policy(output)
    out = export_decoder(decoder, tmp_path / "hf", source=source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)[
        "input_ids"
    ]
    tokens = np.asarray(ids, np.int32)[None]
    np.testing.assert_array_equal(load_hf(out)(tokens), decoder(tokens))
    reference = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        np.testing.assert_allclose(decoder(tokens), reference(torch.tensor(tokens).long()).logits, atol=1e-4)


def test_a_changed_config_is_refused_by_name_and_the_mesh_may_change(uninterrupted):
    output, _ = uninterrupted
    changed = dataclasses.replace(
        CONFIG, output=str(output), rows=4, optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    with pytest.raises(
        UserError, match=r"rows: 8 -> 4; optimizer.learning_rate: 0.003 -> 0.001; optimizer.ema_decay"
    ):
        train(changed)
    assert train(dataclasses.replace(CONFIG, output=str(output), mesh="2")).step == STEPS


def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch_saved(tmp_path):
    config = dataclasses.replace(
        CONFIG, output=str(tmp_path), optimizer=OptimizerConfig(learning_rate=1e38, clip_norm=0.0, warmup=0.0)
    )
    with pytest.raises(UserError, match=r"step \d+: loss .* not both finite; the batch is in") as error:
        train(config)
    saved = next(tmp_path.glob("nonfinite_step_*.npz"))
    assert str(saved) in str(error.value)
    assert np.load(saved)["tokens"].shape == (8, 384)


@pytest.fixture(scope="module")
def nano_folder(uninterrupted):
    return next((uninterrupted[0] / "embedded").glob("nano-*"))


def _edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _no_template(folder):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    fields.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def _no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _edit_tensor(folder, change):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = change(tensors[name].copy())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _nan(x):
    x[0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (None, {"model": ""}, "no model: give --model"),
        (None, {"data": ()}, "no data: give --data"),
        (None, {"model": "no/such/folder/here"}, "no such folder"),
        (None, {"data": ("missing.jsonl",)}, "missing.jsonl"),
        (None, {"mesh": "64"}, "mesh 64 needs 64 devices, 8 found"),
        (None, {"mesh": "fsdp=2,pipeline=2"}, "mesh axis 'pipeline' is unknown"),
        (None, {"mesh": "data=zero"}, "needs a positive whole number"),
        (None, {"mesh": "3"}, "rows=8 in 1 microbatches of 8 cannot be split over 3 devices"),
        (None, {"mesh": "tensor=4"}, "does not divide num_attention_heads=2"),
        (_no_template, {}, "chat template"),
        (lambda f: (f / "tokenizer.json").unlink(), {}, "tokenizer"),
        (_no_tokenizer, {}, "the tokenizer has no vocabulary; put the model's tokenizer.json there"),
        (lambda f: (f / "config.json").unlink(), {}, "config.json: not found"),
        (lambda f: _edit_tensor(f, _nan), {}, "NaN or infinite values in model.layers.0.mlp.up_proj.weight"),
        (lambda f: _edit_tensor(f, lambda x: x.astype(np.int32)), {}, "has dtype I32"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 64),
            {},
            "truncated or no safetensors file",
        ),
        (lambda f: _edit_json(f / "config.json", vocab_size=64), {}, "vocab_size 64"),
        (
            lambda f: _edit_json(f / "config.json", model_type="gpt2"),
            {},
            "model_type 'gpt2' is not supported",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_checkpoint(spoil, changes, message, nano_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(nano_folder, model)
    if spoil is not None:
        spoil(model)
    output = tmp_path / "run"
    config = dataclasses.replace(CONFIG, **{"model": str(model), "output": str(output), **changes})
    with pytest.raises(UserError) as error:
        train(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(output.glob("checkpoints/[0-9]*"))
    assert not (output / "config.yaml").exists()  # so that the corrected line may start in the same folder


def test_strict_stops_at_the_first_bad_record_naming_file_and_line(nano_folder, tmp_path):
    path = tmp_path / "records.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(good) + "\n{broken\n")
    config = dataclasses.replace(
        CONFIG, model=str(nano_folder), data=(str(path),), output=str(tmp_path / "run"), strict=True
    )
    with pytest.raises(UserError, match=r"records.jsonl:2"):
        train(config)


def test_a_script_prints_one_line_and_exits_1(tmp_path, config_file):
    process = start(tmp_path / "run", "--mesh", "8,8", config=config_file)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert text.strip().startswith("error: mesh")
    assert len(text.strip().splitlines()) == 1


def test_a_full_disk_at_checkpoint_time_is_one_line_and_keeps_the_older_checkpoint(config_file, tmp_path):
    """Files of this process may not grow past 100 kB, which the metrics stay under and a checkpoint does not."""
    code = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv = ["train_sft.py", "--config", {str(config_file)!r}, "--output", {str(tmp_path / "run")!r}]
runpy.run_path({str(SCRIPTS / "train_sft.py")!r}, run_name="__main__")
"""
    # The embedded model must exist already: it is larger than the limit.
    embedded_model(tmp_path / "run" / "embedded", CONFIG.nano, CONFIG.seed)
    embedded_data(tmp_path / "run" / "embedded", CONFIG.data[0], CONFIG.seed)
    # Programs are read from the cache and not added to it, which would fail for those that are larger than the limit.
    environment = {**ENVIRONMENT, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    printed = done.stderr
    last = printed.strip().splitlines()[-1]
    assert done.returncode == 1, printed
    assert last.startswith("error:"), printed
    assert "the checkpoint could not be written" in last
    assert "Traceback" not in printed, printed  # every writer fails, some after that line
    assert "never awaited" not in printed, printed
    assert not [p for p in (tmp_path / "run" / "checkpoints").glob("*") if p.name.isdigit()]


def _copied(run, folder):
    shutil.copytree(run, folder)
    return dataclasses.replace(CONFIG, output=str(folder))


def test_a_run_goes_on_with_the_data_it_started_with_and_with_no_others(uninterrupted, tmp_path):
    config = _copied(uninterrupted[0], tmp_path / "run")
    (data,) = (tmp_path / "run" / "embedded").glob("*.jsonl")
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match="the data are not those the run started with; restore them or give"):
        train(config)
    (saved,) = (tmp_path / "run" / "checkpoints" / str(STEPS)).glob("data/data.json")
    fields = json.loads(saved.read_text())
    assert fields.pop("data_sha256")
    saved.write_text(json.dumps(fields))  # as a checkpoint of an older version is
    assert train(config).step == STEPS


def test_a_torn_checkpoint_is_one_line_that_says_what_to_delete(uninterrupted, tmp_path):
    config = _copied(uninterrupted[0], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / str(STEPS) / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"checkpoints/20: not restorable: .*delete this folder") as error:
        train(config)
    assert "\n" not in str(error.value)


def test_an_export_of_a_step_that_is_not_there_names_those_that_are(uninterrupted):
    with pytest.raises(UserError, match="no checkpoint of step 99; there are those of 16, 20"):
        load_policy(uninterrupted[0], 99)


def test_a_run_whose_model_is_elsewhere_says_where_to_start_the_export(uninterrupted, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(uninterrupted[0], output)
    record_run(CONFIG, output, RunRecord("sft", "no/such/folder/here"))
    with pytest.raises(UserError, match="no/such/folder/here is not found from here") as error:
        load_policy(output)
    assert "--model" not in str(error.value)


def test_the_folder_of_another_recipe_is_called_that(tmp_path):
    record_run(RLConfig(), tmp_path, RunRecord("rl", "no/such/folder/here"))
    with pytest.raises(UserError, match=r"holds a run of another recipe \(rl, not sft\)"):
        train(dataclasses.replace(CONFIG, output=str(tmp_path)))
    record_run(CONFIG, tmp_path, RunRecord("sft", "no/such/folder/here"))
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(UserError, match=r"config.yaml: not readable as YAML"):
        train(dataclasses.replace(CONFIG, output=str(tmp_path)))


def test_a_folder_that_holds_no_policy_says_why(tmp_path):
    with pytest.raises(UserError, match="no run in it; give the folder of an SFT or RL run"):
        load_policy(tmp_path)
    write_config(CONFIG, tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"a run of an older version, which kept no run\.json"):
        load_policy(tmp_path)
    record_run(CONFIG, tmp_path, RunRecord("distill", "nano"))
    with pytest.raises(UserError, match="a distillation run trains no model"):
        load_policy(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: not readable"):
        run_record(tmp_path)


def test_a_base_model_that_is_another_run_says_what_to_change(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    record_run(CONFIG, run, RunRecord("sft", "nano"))
    (run / "hf").mkdir()
    write_config(dataclasses.replace(CONFIG, output=str(run), rows=4), tmp_path / "mine.yaml")
    with pytest.raises(
        UserError, match=r"rows: 8 -> 4.*remove .*run, or name another `output` in a copy of mine.yaml"
    ):
        base_model(str(tmp_path / "mine.yaml"), mesh="1")


def test_a_base_model_is_made_once_and_found_again(nano_folder, tmp_path, capsys):
    config = dataclasses.replace(CONFIG, model=str(nano_folder), output=str(tmp_path / "run"), steps=1)
    write_config(config, tmp_path / "mine.yaml")
    folder = base_model(str(tmp_path / "mine.yaml"))
    assert "base model: training mine" in capsys.readouterr().out
    assert base_model(str(tmp_path / "mine.yaml")) == folder
    assert "training" not in capsys.readouterr().out
    assert load_hf(folder).config.hidden_size == 64


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / ".lock").mkdir()  # the tests may run as root, whom no permission stops
    with (
        pytest.raises(UserError, match=r"cannot be written to .*give another --output"),
        lock_run_folder(tmp_path),
    ):
        pass


def test_a_run_that_stops_at_its_first_step_claims_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path) == "and no checkpoint was saved before"
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    assert last_checkpoint(tmp_path) == "the last checkpoint is good"


def test_a_tracker_that_is_not_installed_leaves_the_folder_free(nano_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(CONFIG, model=str(nano_folder), output=str(tmp_path), trackers=("wandb",))
    with pytest.raises(UserError, match="tracker wandb needs the package wandb"):
        train(config)
    assert not (tmp_path / "config.yaml").exists()


def test_the_demo_exports_again_what_has_gone_on_since_and_stops_at_a_stage_that_was_stopped(tmp_path):
    made, folder = [], tmp_path / "hf"

    def export():
        folder.mkdir()
        made.append(1)

    assert [demo.export_once(folder, step, export) for step in (3, 3, 5)] == [True, False, True]
    assert len(made) == 2
    with pytest.raises(UserError, match="stopped; run make demo again"):
        demo.refuse_stopped(True)
    demo.refuse_stopped(False)


def test_the_demo_starts_with_no_argument_that_it_does_not_know(capsys):
    for argument, status in (("--help", 0), ("--frseh", 2)):
        with pytest.raises(SystemExit) as error:
            demo.run([argument])
        assert error.value.code == status
    assert "--fresh" in capsys.readouterr().out


def test_a_checked_export_appears_only_when_the_check_held(uninterrupted, tmp_path, monkeypatch):
    def differs(*_):
        raise UserError("logits differ")

    monkeypatch.setattr(check, "_compare", differs)
    with pytest.raises(UserError, match="logits differ"):
        check.check_export(uninterrupted[0], tmp_path / "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": float("nan")}, "optimizer.learning_rate=nan must be a number of at least 0"),
        ({"learning_rate": -1.0}, "optimizer.learning_rate=-1.0 must be"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm=-1.0 must be"),
        ({"beta2": 1.0}, r"optimizer.beta2=1.0 must be in \[0, 1\)"),
        ({"warmup": 2.0}, "optimizer.warmup=2.0 is a share"),
    ],
)
def test_a_number_out_of_range_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**changes)
