"""The wheel, in an empty environment outside of the checkout: the command, the configs and three steps of SFT."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uv():
    """The installer that `make` uses: on the path or beside this interpreter."""
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert found, "uv is missing; `make test-wheel` brings it"
    return found


@pytest.fixture(scope="module")
def wheel(uv, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", str(out), str(ROOT)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def dcore(uv, wheel, tmp_path_factory):
    """Runs the installed command in an empty folder; gives back what it printed."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "NPROC", "XLA_FLAGS")
    }
    subprocess.run(
        [uv, "venv", "--quiet", "--python", sys.executable, str(home / "env")], check=True, env=environment
    )
    python = str(home / "env" / "bin" / "python")
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", python, str(wheel)], check=True, env=environment
    )

    def run(*arguments):
        done = subprocess.run(
            [str(home / "env" / "bin" / "dcore"), *arguments],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.home = home
    return run


def test_the_wheel_holds_the_configs_the_templates_and_the_types_marker(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {name.rsplit("/", 1)[1] for name in names if name.startswith("dcore_jax/configs/")} == configs
    for name in (
        "nano/chat_template.jinja",
        "nano/prompts/decompose.j2",
        "distill/prompts/decompose.j2",
        "report/style.css",
        "py.typed",
    ):
        assert f"dcore_jax/{name}" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_doctor_and_configs_run_without_the_checkout(dcore):
    assert "CPU" in dcore("doctor")
    assert "sft_qwen3_8b" in dcore("configs")
    assert "no such" not in dcore("rl", "--config", "rl_qwen3_8b", "--help")


def test_three_steps_of_sft_and_an_export_run_without_the_checkout(dcore):
    text = dcore("sft", "--steps", "3", "--data", "toolworld:100")
    assert "steps         3 of 3" in text
    exported = dcore("export", "--run", "runs/sft_nano", "--output", "hf")
    assert "parameters to hf" in exported
    assert (dcore.home / "hf" / "model.safetensors").exists()
    assert str(ROOT) not in (dcore.home / "runs" / "sft_nano" / "config.yaml").read_text()
