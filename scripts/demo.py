#!/usr/bin/env python
"""The method at nano size, on any machine: train, checkpoint, export, and check that the export is what was trained."""

import shutil
import sys
import time
from pathlib import Path

from dcore_jax.cli import run_script
from dcore_jax.config import parse_command_line
from dcore_jax.mesh import prepare_devices
from dcore_jax.sft.config import SFTConfig

ROOT = Path(__file__).parents[1]
DEMO = Path("demo")


def main() -> None:
    if "--fresh" in sys.argv:
        shutil.rmtree(DEMO, ignore_errors=True)
    arguments = ["--mesh", "8", "--output", str(DEMO / "sft")]
    config = parse_command_line(
        SFTConfig, arguments, description="", default_config=lambda _: ROOT / "configs" / "sft_nano.yaml"
    )
    started = time.perf_counter()
    print("1. A small random Qwen3, sample data from the tool world, packed SFT on 8 virtual devices")
    prepare_devices(config.mesh)
    from dcore_jax.evaluation import solve_held_out
    from dcore_jax.sft import summary, train
    from dcore_jax.sft.check import check_export

    result = train(config)
    print(f"\n{summary(result)}")

    print("\n2. Export to Hugging Face format, and the check that it computes the same")
    exported = DEMO / "hf"
    shutil.rmtree(exported, ignore_errors=True)  # this folder is the demo's own
    print(check_export(result.output, exported))

    print("\n3. What the trained model answers to tasks it has never seen")
    print(solve_held_out(exported, tasks=64))
    print(
        f"\nall of it in {DEMO}/, {time.perf_counter() - started:,.0f} s; run it again from scratch: make demo FRESH=1"
    )


if __name__ == "__main__":
    run_script(main)
