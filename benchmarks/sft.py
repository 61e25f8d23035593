"""SFT throughput and memory of this project, transformers + torch and google-tunix, side by side in one run, as Markdown.

    python benchmarks/sft.py [--quick] [--cases full-8k,full-152k,records] [--tunix-python PATH/bin/python] [--data FILE]

Each contestant is a process of its own, so that its peak memory is its own; they take turns, one step each a round, so that a
busy machine slows them alike. Tables show medians over rounds, and medians of the rounds' ratios. A contestant that is not
installed is named and left out.

On a GPU, a model of Qwen3-1.7B's shape with its MFU: `--cases full-152k --dtype bfloat16 --remat full --hidden 2048 --layers 28
--heads 16 --kv-heads 8 --head-dim 128 --rows 4 --length 4096`. Results are in docs/results/sft.md.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import transformers

from dcore_jax.metrics import peak_flops
from dcore_jax.models import Compute, ModelConfig, model_config_from_hf
from dcore_jax.weights import export_decoder, new_decoder
from heading import heading, version
from sft_batches import Case, Work, write_full_rows, write_records

HERE = Path(__file__).parent
MARK = "@@"


CASES = (
    Case("full-8k", 8192, 8, 512),
    Case("full-152k", 151_936, 4, 512),
    Case("records", 8192, 2, 4096, records=True),
    Case("records-152k", 151_936, 2, 4096, records=True),
)


def main() -> None:
    args = parse()
    jax.config.update("jax_platforms", "cpu")  # here; an accelerator belongs to the contestants
    print(heading(["jax", "jaxlib", "flax", "torch", "transformers"]))
    for case in CASES:
        if case.name in args.cases.split(","):
            with tempfile.TemporaryDirectory() as folder:
                run_case(case, args, Path(folder))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="full-8k,full-152k,records")
    parser.add_argument("--contestants", default="ours,torch,tunix")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--tunix-python", default="", help="python of an environment that holds google-tunix")
    parser.add_argument("--data", default=str(HERE.parents[1] / "shared/data/toolrl/rlla_sft.json"))
    shape = {"hidden": 256, "layers": 4, "heads": 4, "kv-heads": 2, "head-dim": 64, "threads": 2}
    for name, default in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--memory", type=float, help="GiB that a contestant may take; default: 3/4 of what is free"
    )
    parser.add_argument("--padded", type=int, default=8, help="records in a padded batch")
    parser.add_argument("--rows", type=int, help="instead of the cases' own")
    parser.add_argument("--length", type=int, help="instead of the cases' own")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", default="none")
    args = parser.parse_args()
    args.rounds = 3 if args.quick else args.rounds
    return args


def run_case(case: Case, args: argparse.Namespace, folder: Path) -> None:
    """Times one case and prints its table."""
    case = case._replace(rows=args.rows or case.rows, length=args.length or case.length)
    if case.records and not Path(args.data).exists():
        print(f"\n{case.name}: left out, {args.data} is not there")
        return
    config = make_model(case, args, folder / "model")
    work = {"limit": Work([1], [1.0])}
    if case.records:
        work |= write_records(case, args.data, args.padded, config, folder)
    else:
        work |= write_full_rows(case, config, folder)
    commands = {
        "limit": [sys.executable, "matmul_limit.py"],
        "ours": [sys.executable, "sft_ours.py"],
        "torch": [sys.executable, "sft_torch.py"],
        "tunix": [args.tunix_python, "tunix_peer.py"],
    }
    print()
    chosen = ["limit", *args.contestants.split(",")]
    if "torch" in chosen and version("torch") is None:
        chosen.remove("torch")
        print("torch: left out, not installed here  ")
    if "tunix" in chosen and not Path(args.tunix_python).is_file():
        chosen.remove("tunix")
        print("tunix: left out, --tunix-python names no file  ")
    if case.records and "tunix" in chosen:
        chosen.remove("tunix")  # it neither packs nor takes labels apart from its mask
    spec = {
        "dtype": args.dtype,
        "remat": args.remat,
        "threads": args.threads,
        "learning_rate": 1e-5,
        "memory_bytes": int(args.memory * 2**30) if args.memory else free_memory() * 3 // 4,
        # Padded batches go through torch two rows at a time, as gradient accumulation: all at once is
        # more than most memories hold.
        "rows_at_a_time": 2 if case.records else case.rows,
    }
    running = {
        name: Contestant(commands[name], {**spec, "steps": len(work[name].flops)}, folder, name)
        for name in chosen
    }
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    try:
        for _ in range(-1, args.rounds):  # the first round compiles and is not counted
            for name, contestant in list(running.items()):
                answer = contestant.step()
                if answer is None:
                    print(f"{name}: left out, its process ended ({contestant.end()})  ")
                    del running[name], answers[name]
                else:
                    answers[name].append(answer)
    finally:
        for contestant in running.values():
            contestant.end()
    print_table(case, args, config, work, answers)


class Contestant:
    """The other side of contestant.serve."""

    def __init__(self, command: list[str], spec: dict[str, Any], folder: Path, name: str):
        self._errors = folder / f"{name}.log"
        batches = folder / f"{name}.npz"
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**spec, "model": str(folder / "model"), "batches": str(batches)}))
        # Several processes share one accelerator.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, str(path)],
                cwd=HERE, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    def step(self) -> dict[str, Any] | None:
        """One optimizer step: what it took; None where the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("1\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        return None

    def end(self) -> str:
        """Ends the process where it has not ended; the last thing it had to say."""
        self._process.kill()
        self._process.wait()
        said = self._errors.read_text(errors="replace").strip().splitlines()
        return said[-1] if said else f"exit status {self._process.returncode}"


def make_model(case: Case, args: argparse.Namespace, folder: Path) -> ModelConfig:
    """A random Qwen3 as a Hugging Face folder, tied, MLP three times the width."""
    fields = transformers.Qwen3Config(
        vocab_size=case.vocab,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # the only one that tunix computes
        tie_word_embeddings=True,
    ).to_dict()
    config = model_config_from_hf(fields | {"architectures": ["Qwen3ForCausalLM"]})
    export_decoder(new_decoder(config, compute=Compute()), folder)
    return config


def print_table(
    case: Case, args: argparse.Namespace, config: ModelConfig, work: dict[str, Work], answers
) -> None:
    counted = {name: list(enumerate(rounds))[1:] for name, rounds in answers.items()}

    def per_second(name: str, amounts: list[float]) -> list[float]:
        return [amounts[i % len(amounts)] / answer["seconds"][0] for i, answer in counted[name]]

    limit = statistics.median(answer["losses"][0] / answer["seconds"][0] for _, answer in counted["limit"])
    device = device_kind()
    peak = peak_flops(device)
    what = "real records" if case.records else f"full rows {case.rows} x {case.length}"
    print(
        f"\n**{case.name}**: {what}, vocabulary {case.vocab:,}, hidden {config.hidden_size}, {config.num_layers} layers, "
        f"{args.dtype}, {config.num_parameters / 1e6:.1f} M parameters; matrix products reach {limit / 1e9:,.0f} GFLOP/s; "
        f"median of {args.rounds} rounds.\n"
    )
    share = "MFU" if peak else "of the limit"
    columns = (
        "loss tokens/s",
        "slowest to fastest",
        "ours is faster by",
        "core seconds a step",
        "peak memory",
        share,
        "loss",
    )
    print(f"| | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    ours = per_second("ours", work["ours"].loss_tokens) if "ours" in counted else []
    for name in counted:
        if name == "limit":
            continue
        rates = per_second(name, work[name].loss_tokens)
        ratio = (
            f"{statistics.median(a / b for a, b in zip(ours, rates)):.2f} x"
            if name != "ours" and ours
            else ""
        )
        cores = statistics.median(answer["core_seconds"][0] for _, answer in counted[name])
        memory = max(answer["peak_bytes"] for _, answer in counted[name]) / 2**30
        used = statistics.median(per_second(name, work[name].flops)) / (peak or limit)
        print(
            f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {ratio} | {cores:.2f} "
            f"| {memory:.2f} GiB | {used:.2f} | {answers[name][0]['losses'][0]:.4f} |",
            flush=True,
        )


def device_kind() -> str:
    """The accelerator's name as a contestant sees it; on a CPU just `cpu`."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    return (done.stdout.strip().splitlines() or ["cpu"])[-1]


def free_memory() -> int:
    """Bytes that new processes may take without anybody's loss."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
