"""The gradient of one RL update: padded rows, packed rows, packed rows that share prompts, on the same tokens, in one run.

    python benchmarks/rl_update.py [--results DIR] [--prompt-tokens 400 --response-tokens 100] [--hidden 256 --layers 4 ...]

`--results` is a folder of stored answers (`*_result.json`, lines with `input_token_count` and `output_token_count`, as BFCL
writes them): prompts have lengths drawn from it, and the G answers of a prompt those of G rows of the same file. Without it every
prompt and every answer has the length given. Padded rows take one of four lengths and `--padded-rows` of them make a pass, as the
trainer did until November 2026; packed rows are the trainer's own. Contestants take turns in every round; medians. The last line
is one JSON object: tokens of answers a second by contestant, and the fill of the shared rows. TRL and Tunix are null: they are
not timed yet.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcore_jax.algorithms import algorithm_preset, policy_batch, policy_batch_denominator
from dcore_jax.engines import Sample
from dcore_jax.metrics import training_flops
from dcore_jax.models import Compute, model_config_from_hf
from dcore_jax.rl.batch import response_arrays
from dcore_jax.rl.rows import count_rows, pack_rows
from dcore_jax.rl.step import accumulate_pass, nothing_accumulated
from dcore_jax.weights import new_decoder
from heading import heading
from padded_rl import pad_samples, padded_gradient


def main() -> None:
    args = parse()
    device = jax.devices()[0]
    print(heading(["jax", "jaxlib", "flax"], None if device.platform == "cpu" else device.device_kind))
    config = model_config_from_hf(fields(args))
    compute = Compute(dtype=jnp.dtype(args.dtype), remat=args.remat)
    graph, params = nnx.split(new_decoder(config, compute=compute))
    rng = np.random.default_rng(args.seed)
    groups = draw_groups(args, rng)
    samples = [sample for group in groups for sample in group]
    longest = max(args.max_prompt + args.max_response, 2048)
    answered = sum(len(sample.ids) for sample in samples)
    print(
        f"{config.num_parameters:,} parameters, {args.dtype}, remat {args.remat}; {len(groups)} prompts x {args.group}: "
        f"{sum(len(group[0].prompt_ids) for group in groups):,} tokens of prompts, {answered:,} of answers\n"
    )
    algorithm = algorithm_preset("da_grpo", "paper")
    responses = response_arrays(groups, max_response=args.max_response)
    logprobs = np.where(responses.mask, -1.0, 0.0).astype(np.float32)
    policy = policy_batch(
        algorithm,
        rng.integers(0, 4, len(samples)).astype(np.float32),
        responses.groups,
        responses.mask,
        logprobs,
        old_entropy=-logprobs,
        ref_logprobs=logprobs,
    )
    denominator = policy_batch_denominator(algorithm, policy, max_length=args.max_response)
    runs, counts = {}, {}
    padded = pad_samples(groups, max_prompt=args.max_prompt, max_response=args.max_response)
    split = partial(jax.tree.map, lambda x: np.asarray(x).reshape(-1, args.padded_rows, *x.shape[1:]))
    gradient = jax.jit(padded_gradient(graph, algorithm, max_response=args.max_response))
    runs["padded"] = partial(gradient, params, *jax.device_put((split(padded), split(policy))))
    held = int(np.count_nonzero(padded.segment_ids))
    counts["padded"] = (
        padded.tokens.size,
        held,
        padded.mask.size,
        answered,
        len(samples) // args.padded_rows,
    )
    step, nothing = (
        jax.jit(partial(accumulate_pass, graph, algorithm), donate_argnums=1),
        jax.jit(nothing_accumulated),
    )

    def update(passes):
        found = nothing(params)
        for one in passes:
            found = step(params, found, one, policy, denominator)
        return found

    for name, mode in (("packed", "separate"), ("shared", "shared")):
        start = time.perf_counter()
        passes = pack_rows(groups, tokens=responses.mask.shape[1], row_length=longest, mode=mode)
        seconds = time.perf_counter() - start
        counts[name] = (*count_rows(passes, *responses.mask.shape), len(passes))
        print(
            f"{name}: packed in {1000 * seconds:.0f} ms on the host, rows of {[p.tokens.shape[1] for p in passes]}"
        )

        runs[name] = partial(update, jax.device_put(passes))
    chosen = [name for name in runs if name in args.contestants.split(",")]
    seconds_of: dict[str, list[float]] = {name: [] for name in chosen}
    losses = {}
    for repeat in range(args.repeats + 1):
        for name in chosen:
            start = time.perf_counter()
            found = jax.block_until_ready(runs[name]())
            if repeat:
                seconds_of[name].append(time.perf_counter() - start)
            losses[name] = float(found[0])
    print(
        "\n| rows | positions | hold a token | head's slots | hold an answer's | passes | s | tokens of answers/s | of padded |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    rates = {}
    for name in chosen:
        positions, tokens, slots, used, passes = counts[name]
        seconds = statistics.median(seconds_of[name])
        rates[name] = answered / seconds
        print(
            f"| {name} | {positions:,} | {tokens / positions:.0%} | {slots:,} | {used / slots:.0%} | {passes} | {seconds:.3f} "
            f"| {rates[name]:,.0f} | {rates[name] / rates[chosen[0]]:.2f} x |"
        )
    if args.peak_tflops and "shared" in rates:
        tokens = sum(len(group[0].prompt_ids) for group in groups) + answered
        flops = training_flops(config, tokens, answered, sum(map(attended, groups)))
        share = flops / statistics.median(seconds_of["shared"]) / args.peak_tflops / 1e12
        print(f"\nMFU of shared rows, each prompt counted once: {share:.1%} of {args.peak_tflops:g} TFLOP/s")
    print(f"\nlosses {losses}\n")
    fill = counts["shared"][1] / counts["shared"][0]
    print(
        json.dumps(
            {**{k: round(v, 1) for k, v in rates.items()}, "trl": None, "tunix": None, "fill": round(fill, 4)}
        )
    )


def fields(args: argparse.Namespace) -> dict:
    """The `config.json` of a random Qwen3 of these sizes."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": args.vocab, "hidden_size": args.hidden,
        "intermediate_size": args.intermediate or 3 * args.hidden, "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads, "num_key_value_heads": args.kv_heads, "head_dim": args.head_dim,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "tie_word_embeddings": True,
        "rope_theta": 1e6, "max_position_embeddings": 40960, "initializer_range": 0.02,
    }  # fmt: skip


def draw_groups(args: argparse.Namespace, rng: np.random.Generator) -> list[list[Sample]]:
    """Groups of random tokens with the lengths asked for."""
    tables = read_lengths(args.results) if args.results else None
    groups = []
    for _ in range(args.prompts):
        if tables is None:
            prompt, answers = args.prompt_tokens, [args.response_tokens] * args.group
        else:
            table = tables[int(rng.choice(len(tables), p=[len(t) / sum(map(len, tables)) for t in tables]))]
            prompt = table[int(rng.integers(len(table)))][0]
            answers = [table[int(i)][1] for i in rng.integers(len(table), size=args.group)]
        ids = random_ids(rng, args.vocab, min(prompt, args.max_prompt))
        sizes = [min(size, args.max_response) for size in answers]
        groups.append(
            [Sample("x", ids, random_ids(rng, args.vocab, n), (-1.0,) * n, "stop", 0) for n in sizes]
        )
    return groups


def random_ids(rng: np.random.Generator, vocabulary: int, size: int) -> tuple[int, ...]:
    """Random tokens."""
    return tuple(map(int, rng.integers(1, vocabulary, size)))


def attended(group: list[Sample]) -> int:
    """Keys that the tokens of a group see, its prompt's once."""
    prompt, sizes = len(group[0].prompt_ids), [len(sample.ids) for sample in group]
    return prompt * (prompt + 1) // 2 + sum(size * prompt + size * (size + 1) // 2 for size in sizes)


def read_lengths(folder: Path) -> list[list[tuple[int, int]]]:
    """(prompt, answer) in tokens of every stored answer of one turn, a list for each file."""
    tables = []
    for path in sorted(folder.rglob("*_result.json")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        counts = [(row.get("input_token_count"), row.get("output_token_count")) for row in rows]
        table = [
            (int(p), int(a))
            for p, a in counts
            if isinstance(p, int | float) and isinstance(a, int | float) and a > 0
        ]
        tables += [table] if table else []
    return tables


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=400)
    parser.add_argument("--response-tokens", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-prompt", type=int, default=8192)
    parser.add_argument("--max-response", type=int, default=4096)
    parser.add_argument("--padded-rows", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--contestants", default="padded,packed,shared")
    parser.add_argument("--peak-tflops", type=float, help="of the device in this dtype; prints MFU")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
