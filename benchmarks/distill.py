"""The distillation pipeline itself: speed and memory with an engine that answers at once, and how busy it keeps a slow server.

    python benchmarks/distill.py [--samples 100000] [--served 2000] [--in-flight 64]

No model runs: answers are scripted (dcore_jax.distill.scripted). Samples are the tool world's, drawn one by one, so what memory
grows by is the pipeline's. The slow server answers each question after 50 to 500 ms, drawn at random, as many side by side as
are in flight; beside it, in the same run, the same questions asked one by one, as the release's loop asks them. Prints Markdown.
"""

import argparse
import heapq
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcore_jax.distill import SeedSample
from dcore_jax.distill.algorithm import Method
from dcore_jax.distill.config import DistillConfig
from dcore_jax.distill.corpus import write_corpus
from dcore_jax.distill.journal import Journal, read_outcomes
from dcore_jax.distill.pipeline import run_pipeline
from dcore_jax.distill.scripted import Script, ScriptedEngine, perfect_script
from dcore_jax.distill.seeds import read_seeds
from dcore_jax.distill.templates import Templates
from dcore_jax.engines import Request, Sample
from dcore_jax.nano import build_tokenizer
from heading import heading

DISTINCT = 1000  # tasks; further samples repeat them under other ids


class Delayed(ScriptedEngine):
    """A scripted server: each answer comes 50 to 500 ms after its question."""

    def __init__(self, tokenizer: Any, script: Script):
        super().__init__(tokenizer, script)
        self.keep_asked = False
        self._due: list[tuple[float, int, Request]] = []
        self._random, self._number = random.Random(0), 0
        self.busy = 0.0  # seconds of all questions together
        self._since = time.perf_counter()

    @property
    def in_flight(self) -> int:
        return len(self._due)

    def submit(self, requests: Sequence[Request]) -> None:
        self._account()
        for request in requests:
            self._number += 1
            heapq.heappush(
                self._due, (time.perf_counter() + self._random.uniform(0.05, 0.5), self._number, request)
            )

    def poll(self) -> list[Sample]:
        if self._due:
            time.sleep(min(max(0.0, self._due[0][0] - time.perf_counter()), 0.05))
        # A question stops keeping the server busy when its answer is due, not when it is fetched.
        finished = []
        while self._due and self._due[0][0] <= time.perf_counter():
            due = self._due[0][0]
            self._account(due)
            finished.append(heapq.heappop(self._due)[2])
        self._account()
        return [self._answer(request) for request in finished]

    def _account(self, until: float | None = None) -> None:
        now = until if until is not None else time.perf_counter()
        self.busy += len(self._due) * max(0.0, now - self._since)
        self._since = max(self._since, now)


def many(samples: Sequence[SeedSample], count: int) -> Iterator[SeedSample]:
    for i in range(count):
        yield replace(samples[i % len(samples)], id=f"{i:08d}-{samples[i % len(samples)].id}")


def script_for(samples: Sequence[SeedSample]) -> Script:
    known = perfect_script({sample.id: sample for sample in samples})
    return lambda request_id: known(request_id.partition("-")[2])


def resident() -> float:
    """MiB of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def at_once(samples: Sequence[SeedSample], tokenizer: Any, count: int, config: DistillConfig) -> list[str]:
    """Rows of the first table: speed and memory on the way to `count` samples, and the corpus at the end."""
    folder = Path(tempfile.mkdtemp())
    engine = ScriptedEngine(tokenizer, script_for(samples))
    engine.keep_asked = False
    marks = sorted({count // 10, count // 2, count})
    rows, ended = [], 0
    start = time.perf_counter()
    cpu = time.process_time()

    def note(outcome: Any) -> None:
        nonlocal ended
        assert outcome.accepted, outcome
        ended += 1
        if ended in marks:
            seconds, cores = time.perf_counter() - start, time.process_time() - cpu
            rows.append(
                f"| {ended:,} | {engine.stats.requests:,} | {seconds:,.1f} | {ended / seconds:,.0f} | "
                f"{ended / cores:,.0f} | {resident():,.0f} |"
            )

    journal = Journal(folder)
    method = Method(config, Templates(config.prompts))
    run_pipeline(
        many(samples, count), method, {"model": tokenizer}, {"model": [engine]}, journal, on_outcome=note
    )
    journal.close()
    start = time.perf_counter()

    class ById(dict):  # the samples of the outcomes without a table of them all
        def __contains__(self, key: object) -> bool:
            return True

        def __missing__(self, key: str) -> SeedSample:
            return samples[int(key[:8]) % len(samples)]

    outcomes = read_outcomes(folder, ById())
    corpus = write_corpus((r for outcome in outcomes for r in outcome.records), folder, form="jsonl", seed=0)
    total, seconds = corpus.records + corpus.duplicates, time.perf_counter() - start
    rows.append(f"| corpus of {total:,} records | | {seconds:,.1f} | | | {resident():,.0f} |")
    shutil.rmtree(folder)
    return rows


def served(
    samples: Sequence[SeedSample], tokenizer: Any, count: int, config: DistillConfig
) -> tuple[float, float]:
    """Samples a second and the share of `in_flight` places that were busy, over the whole run with its first and last second."""
    folder = Path(tempfile.mkdtemp())
    engine = Delayed(tokenizer, script_for(samples))
    journal = Journal(folder)
    start = time.perf_counter()
    method = Method(config, Templates(config.prompts))
    run_pipeline(many(samples, count), method, {"model": tokenizer}, {"model": [engine]}, journal)
    seconds = time.perf_counter() - start
    journal.close()
    shutil.rmtree(folder)
    return count / seconds, engine.busy / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--served", type=int, default=2_000)
    parser.add_argument("--one-by-one", type=int, default=20, help="samples that are asked one by one")
    parser.add_argument("--in-flight", type=int, default=64)
    args = parser.parse_args()
    tokenizer = build_tokenizer(tempfile.mkdtemp())
    samples, _ = read_seeds([f"toolworld:{DISTINCT},subtasks=1-5,reports=yes"])
    kinds = Counter(sample.kind for sample in samples)
    config = DistillConfig(prompts="nano", act="execute", parallel="in_order")

    print("\n" + heading(["transformers", "tokenizers", "jinja2"]))
    shares = ", ".join(f"{name} {count / len(samples):.0%}" for name, count in kinds.most_common())
    print(f"Tool-world samples: {shares}. A report asks no question.\n")
    print(
        "| samples | questions | s | samples/s | samples per CPU second | resident MiB |\n|---|---|---|---|---|---|"
    )
    for row in at_once(samples, tokenizer, args.samples, config):
        print(row, flush=True)

    print("\n| a server of 50 to 500 ms | samples | samples/s | places busy |\n|---|---|---|---|")
    wide = replace(config, in_flight=args.in_flight)
    rate, busy = served(samples, tokenizer, args.served, wide)
    print(
        f"| pipeline, {args.in_flight} in flight | {args.served:,} | {rate:,.2f} | {busy / args.in_flight:.1%} |",
        flush=True,
    )
    slow, busy = served(samples, tokenizer, args.one_by_one, replace(config, in_flight=1))
    print(f"| one by one, as the release | {args.one_by_one:,} | {slow:,.2f} | {busy / args.in_flight:.1%} |")
    print(f"\n{rate / slow:.0f} times as fast.")


if __name__ == "__main__":
    main()
