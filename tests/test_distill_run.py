"""Whole distillation runs with the real native engine and a tiny model of random weights, and mistakes in one line."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dcore_jax import UserError
from dcore_jax.config import config_to_dict, read_config, write_config
from dcore_jax.data.records import read_records
from dcore_jax.distill import distill_seeds, summary
from dcore_jax.distill.config import DecomposeSampling, DistillConfig, ReasonSampling
from dcore_jax.distill.corpus import write_corpus
from dcore_jax.distill.run import _samples
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.distill.served_models import model_digest
from dcore_jax.engines import EngineConfig
from dcore_jax.nano import NanoConfig, embedded_model

ROOT = Path(__file__).parents[1]
SEEDS = "toolworld:10,subtasks=1-3,reports=yes"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Answers of a few random tokens: what is asked and kept is the same as with a model that knows something."""
    model = embedded_model(tmp_path_factory.mktemp("model"), NanoConfig(hidden=64, layers=1), seed=0)
    return DistillConfig(
        model=str(model),
        seeds=(SEEDS,),
        output=str(tmp_path_factory.mktemp("runs") / "first"),
        prompts="nano",
        mode="reference",
        engine=EngineConfig(slots=8),
        max_length=512,
        dtype="float32",
        decompose=DecomposeSampling(max_tokens=12),
        reason=ReasonSampling(max_tokens=12),
    )


@pytest.fixture(scope="module")
def first(config):
    return distill_seeds(config)


def answers(output):
    lines = [
        json.loads(line) for path in (Path(output) / "journal").glob("answers-*") for line in path.open()
    ]
    return sorted((line["id"], line["key"], line["text"], line["tokens"]) for line in lines)


def test_a_run_leaves_a_corpus_a_report_and_a_manifest_that_agree(config, first):
    output = Path(config.output)
    manifest = json.loads((output / "manifest.json").read_text())
    records, rejections = read_records(output / "corpus.jsonl")
    assert (
        not rejections.total
        and len(records) == manifest["corpus"]["records"] == first.modes[0].corpus.records > 0
    )
    assert {record.category for record in records} == {"report"}  # random weights decompose nothing
    samples = manifest["samples"]
    assert (
        sum(manifest["by_stage"].values()) == samples and manifest["by_stage"]["done"] == manifest["accepted"]
    )
    assert sum(manifest["reasons"].values()) == samples - manifest["accepted"] > 0
    asked = manifest["decompositions"]["asked"]
    assert (
        0
        < asked
        == sum(
            sum(ends.values())
            for kind, ends in manifest["by_kind"].items()
            if kind in ("sequential", "parallel")
        )
    )
    assert manifest["config"] == config_to_dict(config) and manifest["versions"]["jax"]
    assert manifest["generated_tokens"]["decompose"] == sum(
        tokens[1] for _, key, _, tokens in answers(output) if key.startswith("decompose")
    )
    assert "<html" in (output / "report.html").read_text()[:300].lower()
    assert f"{samples:,}" in summary(first) and "corpus.jsonl" in summary(first)


def test_the_same_run_again_asks_nothing_and_another_order_gives_the_same_answers(config, first, tmp_path):
    output, before = Path(config.output), answers(config.output)
    corpus = (output / "corpus.jsonl").read_bytes()
    assert distill_seeds(config).modes[0].corpus == first.modes[0].corpus
    assert answers(output) == before and (output / "corpus.jsonl").read_bytes() == corpus
    other = replace(config, output=str(tmp_path / "other"), in_flight=3)
    assert distill_seeds(other).modes[0].corpus.sha256 == first.modes[0].corpus.sha256
    assert answers(other.output) == before


def test_a_limit_can_be_raised_later(config, first, tmp_path):
    few = replace(config, output=str(tmp_path / "run"), limit=4)
    assert distill_seeds(few).modes[0].counts.overall.samples == 4
    asked = answers(few.output)
    whole = distill_seeds(replace(few, limit=None))
    assert whole.modes[0].corpus.sha256 == first.modes[0].corpus.sha256
    assert set(map(str, asked)) < set(map(str, answers(few.output))) and answers(few.output) == answers(
        config.output
    )


def test_a_limit_takes_from_each_source_in_turn(config, tmp_path):
    say = {"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
    rows = [
        {"query": f"say {i}", "tools": [say], "reference": [{"name": "say", "arguments": {"text": str(i)}}]}
        for i in range(3)
    ]
    plain = tmp_path / "seeds.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seeds = ("toolworld:6,kinds=irrelevant", f"jsonl:{plain}")
    few = replace(config, output=str(tmp_path / "run"), seeds=seeds, limit=3)
    by_source = distill_seeds(few).modes[0].counts.by_source
    assert {name: counts.samples for name, counts in by_source.items()} == {"toolworld": 2, "jsonl": 1}
    more = distill_seeds(replace(few, limit=7)).modes[0].counts.by_source
    assert {name: counts.samples for name, counts in more.items()} == {"toolworld": 4, "jsonl": 3}


def test_a_limit_takes_from_each_of_two_files_of_one_format_and_two_tool_worlds_in_turn(tmp_path):
    say = {"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
    for name in "ab":
        rows = [
            {"query": f"say {name}{i}", "tools": [say], "reference": [{"name": "say", "arguments": {}}]}
            for i in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    specs = [f"jsonl:{tmp_path / name}.jsonl" for name in "ab"] + ["toolworld:3", "toolworld:3,seed=5"]
    samples, rejected = _samples(DistillConfig(seeds=tuple(specs), limit=6))
    whole, _ = read_seeds(specs)
    assert not rejected.total
    assert [sample.id for sample in samples] == [whole[i].id for i in (0, 3, 6, 9, 1, 4)]


def test_table_6_runs_every_mode_on_the_same_seeds(config, tmp_path):
    run = replace(config, output=str(tmp_path / "table6"), table6=True, limit=6)
    result = distill_seeds(run)
    text = summary(result)
    assert [mode.mode for mode in result.modes] == ["none", "reference", "examples", "pseudo"]
    for name in ("no reference", "reference + few-shot", "pseudo-labels"):
        assert f"| {name} |" in text
    assert {path.name for path in (Path(run.output) / "table6").iterdir()} == {
        "none",
        "reference",
        "examples",
        "pseudo",
    }
    samples = {mode.counts.overall.samples for mode in result.modes}
    assert samples == {6}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "no model: give --model"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all: no such folder"),
        ({"seeds": ()}, "no seeds: give --seeds"),
        ({"seeds": ("unknown:file",)}, "unknown"),
        ({"seeds": ("toolworld:0",)}, "no seed sample to start from"),
        ({"prompts": "nowhere"}, "nowhere: no such folder of prompts"),
        ({"labels": "nowhere.jsonl", "mode": "pseudo"}, "nowhere.jsonl: no such file"),
        ({"max_length": 10**6}, "max_length=1000000 is not possible"),
    ],
)
def test_a_mistake_is_one_line(config, tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        distill_seeds(replace(config, **{"output": str(tmp_path / "run"), **changes}))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"attempts": 0}, "attempts=0 must be at least 1"),
        ({"call_format": "xml"}, "call_format is 'xml'"),
        ({"labels": "l.jsonl"}, "labels is given but mode is 'examples'; use --mode pseudo"),
        ({"labeller": "other"}, "labeller is given but mode is 'examples'; use --mode pseudo"),
        ({"labels": "l.jsonl", "labeller": "other", "mode": "pseudo"}, "labels and labeller are both given"),
        (
            {
                "labeller": "other",
                "mode": "pseudo",
                "engine": EngineConfig(name="vllm-server", servers=("http://localhost:1",)),
            },
            "the servers hold one model, and labeller is another; leave --engine.servers out",
        ),
        ({"reason": ReasonSampling(temperature=-1.0)}, "temperature=-1.0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**changes).reason.params(0)


def test_a_folder_keeps_to_the_run_that_began_in_it(config, first):
    with pytest.raises(UserError, match=r"holds a run with another config \(seed: 0 -> 1"):
        distill_seeds(replace(config, seed=1))
    digest = Path(config.output) / "journal" / "prompts.sha256"
    kept = digest.read_text()
    digest.write_text("other\n")
    with pytest.raises(UserError, match="holds a run with other prompts"):
        distill_seeds(config)
    digest.write_text(kept)


def small(config, tmp_path, **changes):
    return replace(config, output=str(tmp_path / "run"), seeds=("toolworld:1,kinds=irrelevant",), **changes)


def test_a_kill_amid_the_writing_of_a_small_file_leaves_a_folder_that_goes_on(config, tmp_path, monkeypatch):
    run, write = small(config, tmp_path), Path.write_text
    for name in ("config.yaml", "prompts.sha256", "model.sha256", "manifest.json"):

        def killed(path, text, *args, at=name, **named):
            if path.name.startswith(at):
                path.open("w").close()
                raise KeyboardInterrupt  # what follows finds the folder as after SIGKILL here
            return write(path, text, *args, **named)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_text", killed)
            with pytest.raises(KeyboardInterrupt):
                distill_seeds(run)
    assert distill_seeds(run).modes[0].counts.overall.samples == 1


def test_a_folder_refuses_another_model_in_the_same_place_and_another_file_of_labels(config, tmp_path):
    model, labels = tmp_path / "model", tmp_path / "labels.jsonl"
    shutil.copytree(config.model, model)
    labels.write_text('{"id": "a", "calls": []}\n')
    run = small(config, tmp_path, model=str(model), mode="pseudo", labels=str(labels))
    distill_seeds(run)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["digest"] and manifest["labels_sha256"]
    labels.write_text('{"id": "b", "calls": []}\n')
    with pytest.raises(UserError, match="run holds a run with another file of labels; put it back"):
        distill_seeds(run)
    labels.write_text('{"id": "a", "calls": []}\n')
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # the same shapes, another checkpoint
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="run holds a run with another model in the same place"):
        distill_seeds(run)


def test_a_models_digest_tells_checkpoints_apart_wherever_they_lie(tmp_path):
    def folder(name, weights, template="{{ messages }}"):
        (tmp_path / name).mkdir()
        header = b'{"w": {"dtype": "U8", "shape": [%d]}}' % len(weights)
        (tmp_path / name / "model.safetensors").write_bytes(
            len(header).to_bytes(8, "little") + header + weights
        )
        (tmp_path / name / "chat_template.jinja").write_text(template)
        return model_digest(tmp_path / name)

    weights = bytes(range(256)) * 65_536  # 16 MiB: not read as a whole
    at = len(weights) // 3
    matrix = weights[:at] + bytes(32_768) + weights[at + 32_768 :]  # one small matrix differs
    digests = [
        folder("a", weights),
        folder("b", weights),
        folder("c", matrix),
        folder("d", weights, "{{ tools }}"),
        folder("e", b"x"),
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 4


@pytest.mark.parametrize("name", ["distill_nano", "distill_qwen3_8b", "distill_qwen3_8b_release"])
def test_the_configs_that_come_along_can_be_read(name):
    config = read_config(DistillConfig, ROOT / "configs" / f"{name}.yaml")
    assert config.model and f"preset {'release' if 'release' in name else 'paper'}" in config.choices()


def test_what_a_kill_left_of_a_corpus_is_gone_after_the_next_writing(tmp_path):
    for name in ("corpus.partial-17", "corpus.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00").write_text("left")
    record = {"messages": [], "id": "a", "source": "jsonl"}
    assert write_corpus([record], tmp_path, form="jsonl", seed=0).records == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.slow
def test_five_kills_lose_nothing_but_the_requests_in_flight(config, tmp_path):
    """The script itself, in processes of their own, with the real engine."""
    config = replace(
        config, seeds=("toolworld:60,subtasks=1-4,reports=yes",), in_flight=8, output=str(tmp_path / "killed")
    )
    write_config(config, tmp_path / "run.yaml")
    command = [sys.executable, str(ROOT / "scripts" / "distill.py"), "--config", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    killed, counts = 0, []
    for seed in range(5):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        journal = Path(config.output) / "journal"
        start = len(answers_torn(journal))
        while process.poll() is None and len(answers_torn(journal)) < start + 5:
            time.sleep(0.05)
        time.sleep(random.Random(seed).uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        counts.append(len(answers_torn(journal)))
    assert killed == 5 and counts[0] < counts[-1], counts
    last = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    whole = replace(config, output=str(tmp_path / "whole"), in_flight=64)
    distill_seeds(whole)
    assert (tmp_path / "killed" / "corpus.jsonl").read_bytes() == (
        tmp_path / "whole" / "corpus.jsonl"
    ).read_bytes()
    assert answers(config.output) == answers(whole.output)


def answers_torn(journal):
    return [line for path in journal.glob("answers-*") for line in path.read_bytes().splitlines()]
