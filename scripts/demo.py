#!/usr/bin/env python
"""The method at nano size, on any machine: SFT on a mesh, export, and DA-GRPO from there, each checked on held-out tasks."""

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcore_jax.cli import run_script
from dcore_jax.config import parse_command_line
from dcore_jax.mesh import prepare_devices
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = Path("demo")


def main() -> None:
    if "--fresh" in sys.argv:
        shutil.rmtree(DEMO, ignore_errors=True)
    started = time.perf_counter()
    sft = replace(preset(SFTConfig, "sft_nano"), mesh="8", output=str(DEMO / "sft"))
    exported, learned = DEMO / "hf_sft", DEMO / "hf"
    rl = replace(preset(RLConfig, "rl_nano"), model=str(exported), output=str(DEMO / "rl"), steps=30)

    print("1. A small random Qwen3, sample data from the tool world, packed SFT on 8 virtual devices")
    prepare_devices(sft.mesh)
    from dcore_jax import export_hf
    from dcore_jax import rl as rl_recipe
    from dcore_jax import sft as sft_recipe
    from dcore_jax.evaluation import solve_held_out
    from dcore_jax.sft.check import check_export

    trained = sft_recipe.train(sft)
    print(f"\n{sft_recipe.summary(trained)}")
    print(f"\n2. Export to Hugging Face format, and the check that it computes the same ({elapsed(started)})")
    if not exported.exists():
        print(check_export(trained.output, exported))
    print(f"\n3. What it answers to tasks it has never seen ({elapsed(started)})")
    print(solve_held_out(exported, tasks=64))

    print(f"\n4. DA-GRPO from there, rewarded in the tool world ({elapsed(started)})")
    print(f"\n{rl_recipe.summary(rl_recipe.train(rl))}")
    if not learned.exists():
        model, source = rl_recipe.trained_decoder(rl.output)
        export_hf(model, learned, source=source)
    print(f"\n5. The same held-out tasks again ({elapsed(started)})")
    print(solve_held_out(learned, tasks=64))
    print(f"\nall of it in {DEMO}/, {elapsed(started)}; run it again from scratch: make demo FRESH=1")


def preset(config_type: type[Any], name: str) -> Any:
    return parse_command_line(
        config_type, [], description="", default_config=lambda _: CONFIGS / f"{name}.yaml"
    )


def elapsed(started: float) -> str:
    return f"{time.perf_counter() - started:,.0f} s"


if __name__ == "__main__":
    run_script(main)
