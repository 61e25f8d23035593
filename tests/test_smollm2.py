"""SmolLM2-135M-Instruct, real weights, through everything: load, answer, SFT, export, DA-GRPO, export, reload.

Each stage is a process of its own, as a user would start it: `make test-network` runs them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dcore_jax import nano
from dcore_jax.metrics import read_metrics
from dcore_jax.training import load_policy
from dcore_jax.weights.export import hf_tensors
from oracles import smollm2_folder

pytestmark = [pytest.mark.network, pytest.mark.slow]

SMALL = (
    "--mesh", "1", "--compute.dtype", "float32", "--compute.remat", "none", "--optimizer.warmup", "0",
)  # fmt: skip

# Greedy answers of the native engine and of transformers to the same chats, and the largest difference of their logits.
_ANSWERS = """
import json, sys
import jax.numpy as jnp, numpy as np, torch
from flax import nnx
from transformers import AutoModelForCausalLM
from dcore_jax import load_hf
from dcore_jax.data.chat_template import render_chat
from dcore_jax.data.rendering import end_of_turn_ids
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.engines import NativeEngine, Request, SamplingParams

folder, tokens = sys.argv[1], 24
tokenizer, ours = load_tokenizer(folder), load_hf(folder)
theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
asked = ["What is the capital of Norway?", "Count from 1 to 5.", "Write one sentence about the tide.", "Say hello in French."]
chats = [render_chat(tokenizer, [{"role": "user", "content": q}], add_generation_prompt=True) for q in asked]
prompts = [tuple(tokenizer(chat, add_special_tokens=False)["input_ids"]) for chat in chats]
ends = sorted(end_of_turn_ids(tokenizer))
engine = NativeEngine(ours, slots=4, eos_token_ids=ends)
answers = engine.generate([Request(p, SamplingParams(max_tokens=tokens, temperature=0.0)) for p in prompts])
expected, gap, forward = [], 0.0, nnx.jit(lambda decoder, ids: decoder(ids))
for prompt in prompts:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        logits = theirs(ids).logits.numpy()
        whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                                eos_token_id=ends, pad_token_id=0)
    expected.append(whole[0, len(prompt):].tolist())
    padded = jnp.array([prompt + (0,) * (64 - len(prompt))])  # one shape, one program; causal
    gap = max(gap, float(np.abs(np.asarray(forward(ours, padded))[:, : len(prompt)] - logits).max()))
print("ANSWER", json.dumps({
    "ours": [list(a.ids) for a in answers], "theirs": expected, "gap": gap,
    "texts": [tokenizer.decode(a.content_ids) for a in answers],
}))
"""


def run(*command):
    """A process as a user starts it: one CPU device, and machine code that is optimised."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
    done = subprocess.run(
        [sys.executable, "-c", *map(str, command)],
        capture_output=True, text=True, check=False, env=environment | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def dcore(*arguments):
    return run("from dcore_jax.cli import main; main()", *arguments)


def answers(folder):
    return json.loads(run(_ANSWERS, folder).rpartition("ANSWER")[2])


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    for file in smollm2_folder().iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def tuned(smollm2, tmp_path_factory):
    """After three steps of SFT in the tool world: the run's folder and its export."""
    output = tmp_path_factory.mktemp("sft")
    dcore(
        "sft", "--model", smollm2, "--data", "toolworld:64,kinds=single,subtasks=1", "--output", output / "run", *SMALL,
        "--steps", 3, "--rows", 2, "--packing.length", 128, "--optimizer.learning-rate", "1e-4", "--checkpoint.every", 3,
    )  # fmt: skip
    dcore("export", "--run", output / "run", "--output", output / "hf")
    return output / "run", output / "hf"


def same_weights(run_folder, exported):
    """Whether the exported tensors are the parameters of the run's last checkpoint, bit for bit."""
    policy = dict(hf_tensors(load_policy(run_folder)[0]))
    written = load_file(exported / "model.safetensors")
    assert written.keys() <= policy.keys()
    return all(np.array_equal(policy[name], value) for name, value in written.items())


def test_answers_equal_transformers(smollm2):
    found = answers(smollm2)
    assert found["ours"] == found["theirs"]
    assert found["gap"] < 1e-3
    assert "Oslo" in found["texts"][0]


def test_sft_learns_and_what_it_exports_computes_the_same(tuned):
    run_folder, exported = tuned
    losses = [row["loss"] for row in read_metrics(run_folder / "metrics.jsonl")]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert same_weights(run_folder, exported)
    found = answers(exported)
    assert found["ours"] == found["theirs"]


def test_da_grpo_trains_on_from_there_with_a_mix_of_rewards(tuned, tmp_path):
    _, start = tuned
    # SmolLM2's own template shows no tools, and RL refuses prompts whose tools the model cannot see.
    (start / "chat_template.jinja").write_text(
        Path(nano.__file__).with_name("chat_template.jinja").read_text()
    )
    (tmp_path / "brevity.py").write_text("def brevity(given):\n    return -given.tokens / 100\n")
    dcore(
        "rl", "--model", start, "--data", "toolworld:8,kinds=single,subtasks=1", "--output", tmp_path / "run", *SMALL,
        "--steps", 2, "--prompts", 2, "--updates", 1, "--rollout.group", 2, "--rollout.max-prompt", 256,
        "--rollout.max-response", 16, "--engine.slots", 4, "--engine.cache-length", 272, "--checkpoint.every", 2,
        "--optimizer.learning-rate", "1e-5", "--reward", "dcore_paper", f"{tmp_path}/brevity.py:brevity=0.5",
    )  # fmt: skip
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)
    assert max(row["engine_gap_max"] for row in rows) < 1e-3
    assert all(row["reward_brevity"] < 0 for row in rows)
    dcore("export", "--run", tmp_path / "run", "--output", tmp_path / "hf")
    assert same_weights(tmp_path / "run", tmp_path / "hf")
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "hf"))
    assert any(not np.array_equal(before[name], after[name]) for name in before)
