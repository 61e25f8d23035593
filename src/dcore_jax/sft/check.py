"""Checks of a finished run: the export computes what the run does, and what the model can do with tasks it never saw."""

from pathlib import Path

import numpy as np

from dcore_jax import load_hf
from dcore_jax.engines.native import NativeEngine
from dcore_jax.errors import UserError
from dcore_jax.evaluation import accuracy_table, solve
from dcore_jax.sft.train import trained_decoder
from dcore_jax.toolworld import generate_tasks
from dcore_jax.weights import export_decoder


def check_export(run: Path, out: Path) -> str:
    """Exports the run's latest checkpoint, loads it again and compares logits on random tokens; with torch, transformers' too.

    Raises:
      UserError: a logit differs by more than 1e-4.
    """
    decoder, source = trained_decoder(run)
    export_decoder(decoder, out, source=source)
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (2, 64)).astype(np.int32)
    expected = np.asarray(decoder(tokens))
    lines = [_compare("dcore_jax.load_hf", np.asarray(load_hf(out)(tokens)), expected)]
    try:
        import torch
        import transformers
    except ImportError:
        lines.append("transformers: not compared, torch is not installed")
    else:
        with torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="float32")
            logits = model(torch.tensor(tokens).long()).logits.numpy()
        lines.append(_compare("transformers", logits, expected))
    return f"exported to {out}\n" + "\n".join(lines)


def _compare(name: str, logits: np.ndarray, expected: np.ndarray) -> str:
    error = float(np.abs(logits - expected).max())
    if not error <= 1e-4:
        raise UserError(f"{name}: logits of the export differ from the run's by {error:.2g}")
    return f"{name}: largest difference of {expected.size:,} logits {error:.1g}"


def solve_held_out(model: Path, *, tasks: int, subtasks: int = 2, shown: int = 3, seed: int = 0) -> str:
    """Greedy answers to held-out tool-world tasks: a table of what was solved, and a few answers to read."""
    from transformers import AutoTokenizer

    decoder, tokenizer = load_hf(model), AutoTokenizer.from_pretrained(model)
    engine = NativeEngine(decoder, slots=32, max_length=1024, eos_token_ids=(tokenizer.eos_token_id,))
    items = generate_tasks(tasks, seed=seed, split="test", subtasks=(1, subtasks))
    attempts = solve(items, engine.generate, tokenizer, progress=True)
    engine.close()
    lines = [accuracy_table(attempts)]
    for attempt in attempts[:shown]:
        wanted = (
            ", ".join(f"{call.name}({dict(call.arguments)})" for call in attempt.task.reference) or "no call"
        )
        lines += [f"\nasked     {attempt.task.query}", f"wanted    {wanted}"]
        lines += [f"answered  {' '.join(turn.split())}" for turn in attempt.turns]
    return "\n".join(lines)
