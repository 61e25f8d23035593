"""BFCL's own command line against `dcore serve`: it generates over HTTP, scores with its own checkers, and we score the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import oracles
from dcore_jax.cli.evaluate.bfcl import run as evaluate_bfcl
from dcore_jax.engines import Sample
from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl.client import Client
from dcore_jax.evaluation.bfcl.install import RELEASES, install
from dcore_jax.evaluation.bfcl.score import score_results
from dcore_jax.nano.config import nano_fields
from dcore_jax.player import BatchEngine
from qwen_tokenizer import byte_tokenizer
from test_bfcl_oracle import first_answer, written
from test_serve import Served, playable

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(1200)]
pytest.importorskip("aiohttp", reason="the extra `serve`")
CATEGORY, KEY = "live_parallel", "EMPTY"  # the key that the command line sends


def command_line(version):
    """The `bfcl` of a release in an environment of its own, without torch, which it needs for no server."""
    folder = oracles.CACHE / f"bfcl-command-{version}"
    program = folder / "bin" / "bfcl"
    if not (folder / "whole").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "overrides.txt").write_text("torch ; sys_platform == 'never'\n")
        uv = Path(sys.executable).with_name("uv")
        python = folder / "bin" / "python"
        for command in (
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder],
            [uv, "pip", "install", "--quiet", "--link-mode", "copy", "--override", folder / "overrides.txt",
             "--python", python, "transformers", "soundfile", f"bfcl-eval=={RELEASES[version]}"],
        ):  # fmt: skip
            done = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, check=False, timeout=900
            )
            if done.returncode:
                pytest.skip(f"bfcl-eval's command line cannot be installed: {done.stderr.strip()[-200:]}")
        (folder / "whole").touch()
    return program


def knowing(tokenizer, answers):
    """Stands in for a model that knows the answers: says that of the question which its prompt holds."""

    def generate(requests):
        samples = []
        for request in requests:
            prompt = tokenizer.decode(request.prompt_ids)
            (text,) = {answer for question, answer in answers.items() if question in prompt}
            ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
            samples.append(Sample(request.id, request.prompt_ids, ids, (-0.5,) * len(ids), "stop", 0))
        return samples

    return BatchEngine(generate)


@pytest.mark.parametrize(
    ("version", "model"), [("v3", "Qwen/Qwen3-8B"), ("v4", "Qwen/Qwen3-8B"), ("v4", "Qwen/Qwen3-8B-FC")]
)
def test_generates_against_dcore_serve_and_scores_the_references_as_right(
    version, model, tmp_path, monkeypatch
):
    """15 of 16 questions are answered with the reference: so says their evaluation, ours of their results, and our own run."""
    try:
        folder = install(version)
    except UserError as error:
        pytest.skip(str(error))
    program, fc = command_line(version), model.endswith("-FC")
    with Client(folder, version) as client:
        questions = client.ask("prompts", category=CATEGORY, function_calling=fc)
        references = client.ask("references_of", category=CATEGORY)
    answers = {
        question["turns"][0][-1]["content"]: written(
            first_answer(reference["ground_truth"] if isinstance(reference, dict) else reference),
            "tags" if fc else "prompt",
            False,
        )
        for question, reference in zip(questions, references, strict=True)
    }
    answers[questions[3]["turns"][0][-1]["content"]] = "I cannot do this."
    tokenizer = byte_tokenizer()
    checkpoint = tmp_path / "checkpoint"
    tokenizer.save_pretrained(checkpoint)
    fields = {**nano_fields(320, hidden=64, layers=1), "max_position_embeddings": 40_000}
    (checkpoint / "config.json").write_text(json.dumps(fields))
    served = Served(playable(tokenizer, knowing(tokenizer, answers), max_length=40_000), api_key=KEY)
    try:
        project = tmp_path / "project"
        project.mkdir()
        environment = {
            **os.environ, "BFCL_PROJECT_ROOT": str(project), "LOCAL_SERVER_ENDPOINT": "127.0.0.1",
            "LOCAL_SERVER_PORT": str(served.port), "HF_HUB_OFFLINE": "1",
            "VLLM_ENDPOINT": "127.0.0.1", "VLLM_PORT": str(served.port),  # v3's names of the same
        }  # fmt: skip

        def bfcl(*arguments):
            done = subprocess.run(
                [str(program), *arguments], env=environment, cwd=project, capture_output=True, text=True,
                check=False, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

        asked = ["--model", model, "--test-category", CATEGORY]
        bfcl("generate", *asked, "--skip-server-setup", "--local-model-path", str(checkpoint))
        bfcl("evaluate", *asked)
        (scores,) = project.rglob(f"*{CATEGORY}_score.json")
        head = json.loads(scores.read_text().splitlines()[0])
        assert (head["correct_count"], head["total_count"]) == (15, 16)
        ours = score_results(project / "result", folder, version).counts()
        assert tuple(ours[CATEGORY])[:2] == (15, 16)

        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        output = tmp_path / "eval"
        evaluate_bfcl(
            ["--model", str(checkpoint), "--engine", "server", "--servers", f"http://127.0.0.1:{served.port}",
             "--bfcl-version", version, "--mode", "fc" if fc else "prompt", "--categories", CATEGORY,
             "--output", str(output)]
        )  # fmt: skip
        summary = json.loads((output / "summary.json").read_text())
        assert (summary["all"]["correct"], summary["all"]["total"]) == (15, 16)
        wrong = [json.loads(line) for line in (output / "items.jsonl").read_text().splitlines()]
        assert [item["id"] for item in wrong if not item["correct"]] == [questions[3]["id"]]
    finally:
        served.close()
