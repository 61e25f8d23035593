"""Requests per second of the vLLM client beside a minimal asyncio client, with the same stub server, in one run.

    python benchmarks/vllm_client.py [--requests 2048] [--concurrent 256] [--delays 0.1,0.25,1] [--rounds 5]

Both send the same bodies over the same number of connections and read the same responses; the minimal client (aiohttp, one task
for each connection) neither validates nor retries. They take turns within every round; the table shows medians, and the median of
the rounds' ratios. The stub responds after a fixed delay, as an engine that is busy with a batch would. Prints Markdown.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from dcore_jax.engines import Request, SamplingParams
from dcore_jax.engines.vllm.engine import ServerEngine
from dcore_jax.engines.vllm.pool import Limits
from dcore_jax.engines.vllm.protocol import PreparedRequest
from dcore_jax.engines.vllm.server import OwnServer, ServerPlan
from dcore_jax.models import ModelConfig
from heading import heading

STUB = Path(__file__).parents[1] / "tests" / "stub_vllm_server.py"
VOCAB = 131


class StubPlan(ServerPlan):
    def command(self, port: int) -> list[str]:
        return [sys.executable, str(STUB), f"--port={port}", "--canned", "--length=4096", *self.arguments]


def minimal(server: OwnServer, asked: list[Request], concurrent: int) -> float:
    """Seconds that a client without validation, timeouts and retries needs for all requests."""

    async def run() -> float:
        bodies = iter([PreparedRequest(r, r.sampling.max_tokens, frozenset(), VOCAB) for r in asked])
        headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
        received = []
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def worker() -> None:
                for prepared in bodies:
                    data = json.dumps(prepared.body("stub"))
                    url = server.url + "/inference/v1/generate"
                    async with session.post(url, data=data, headers=headers) as response:
                        received.append(json.loads(await response.read())["choices"][0]["token_ids"])

            start = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(concurrent)))
            seconds = time.perf_counter() - start
        assert len(received) == len(asked)
        return seconds

    return asyncio.run(run())


def ours(engine: ServerEngine, asked: list[Request]) -> float:
    """Seconds that `ServerEngine.generate` needs for all requests."""
    start = time.perf_counter()
    samples = engine.generate(asked)
    seconds = time.perf_counter() - start
    assert len(samples) == len(asked)
    return seconds


def config() -> ModelConfig:
    from dcore_jax.models import read_model_config

    with tempfile.TemporaryDirectory() as folder:
        fields = {
            "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu",
        }  # fmt: skip
        (Path(folder) / "config.json").write_text(json.dumps(fields))
        return read_model_config(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2048)
    parser.add_argument("--concurrent", type=int, default=256)
    parser.add_argument("--delays", default="0.1,0.25,1", help="seconds that a response takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens")
    args = parser.parse_args()
    sampling = SamplingParams(max_tokens=args.new, ignore_eos=True)
    asked = [
        Request(tuple((i + j) % VOCAB for j in range(args.prompt)), sampling, i) for i in range(args.requests)
    ]
    print(heading(["aiohttp"]))
    print(f"{args.requests} requests of {args.prompt} + {args.new} tokens, {args.concurrent} at a time\n")
    print("| delay | minimal client | this client | share | rounds |\n|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for delay in map(float, args.delays.split(",")):
            plan = StubPlan(Path("stub"), Path(folder), 4096, arguments=(f"--delay={delay}",))
            server = OwnServer(plan)
            limits = Limits(in_flight=args.concurrent)
            engine = ServerEngine([server], config(), max_length=4096, folder=folder, limits=limits)
            try:
                minimal(server, asked[: args.concurrent], args.concurrent)
                ours(engine, asked[: args.concurrent])
                times = []
                for number in range(args.rounds):
                    pair = [None, None]
                    for which in (0, 1) if number % 2 else (1, 0):
                        pair[which] = (
                            ours(engine, asked) if which else minimal(server, asked, args.concurrent)
                        )
                    times.append(pair)
            finally:
                engine.close()
            per_second = [args.requests / statistics.median(column) for column in zip(*times)]
            share = statistics.median(theirs / mine for theirs, mine in times)
            print(
                f"| {delay * 1000:.0f} ms | {per_second[0]:,.0f}/s | {per_second[1]:,.0f}/s | {share:.1%} | {args.rounds} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
