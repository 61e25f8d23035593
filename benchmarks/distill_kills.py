"""Self-distillation killed at random and started again, against the run that was left alone: are the corpora the same bytes?

    python benchmarks/distill_kills.py [--config FILE] [--model FOLDER] [--samples 500] [--kills 5] [--seed 0] [--output FOLDER]

Both runs are `dcore distill` with the config's model and engine, in processes of their own; the base model, where the config
names one, is made first. A kill is SIGKILL at a moment drawn uniformly over the time that the whole run needed for its answers.
Exits with 1 where the corpora differ, or where the killed run ended before all kills had come.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "distill_nano.yaml")
    parser.add_argument("--model", help="a Hugging Face folder, in place of the config's model")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/distill_kills"))
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "distill.py"),
        "--config",
        str(args.config),
        "--limit",
        str(args.samples),
        *(["--model", args.model] if args.model else []),
    ]
    whole, killed = args.output / "whole", args.output / "killed"
    subprocess.run([*command, "--output", str(whole)], check=True, stdout=subprocess.DEVNULL)
    wanted = answers(whole)

    rng = random.Random(args.seed)
    # Shares of the whole run's answers at which a kill comes, and then up to a second later: in the middle of anything.
    marks = sorted(rng.uniform(0.05, 0.95) for _ in range(args.kills))
    for number, mark in enumerate(marks, start=1):
        process = subprocess.Popen(
            [*command, "--output", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and answers(killed) < mark * wanted:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            sys.exit(f"kill {number}: the run had ended before, with {process.returncode}")
        print(f"kill {number}: {answers(killed):,} of {wanted:,} answers in the journal", flush=True)
    subprocess.run([*command, "--output", str(killed)], check=True, stdout=subprocess.DEVNULL)

    digests = [hashlib.sha256((run / "corpus.jsonl").read_bytes()).hexdigest() for run in (whole, killed)]
    records = json.loads((whole / "manifest.json").read_text())["corpus"]["records"]
    print(f"whole   {digests[0]}  {records:,} records\nkilled  {digests[1]}")
    print("the same bytes" if digests[0] == digests[1] else "DIFFERENT")
    print(f"answers in the journal: {wanted:,} and {answers(killed):,}")
    sys.exit(digests[0] != digests[1])


def answers(run: Path) -> int:
    """Lines in the journal's shards of answers, a torn last one included."""
    return sum(len(path.read_bytes().splitlines()) for path in (run / "journal").glob("answers-*"))


if __name__ == "__main__":
    main()
