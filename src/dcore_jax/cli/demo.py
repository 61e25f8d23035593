"""`dcore demo`: the whole method at nano size: base, self-distillation, SFT on its corpus, DA-GRPO, held-out tasks."""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcore_jax.atomic import write_text_atomic
from dcore_jax.config import find_config, read_config
from dcore_jax.distill.config import DistillConfig
from dcore_jax.errors import UserError
from dcore_jax.mesh import prepare_devices
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig

DEMO = Path("demo")
MESH = "8"  # of the two SFT runs: virtual devices on a CPU
HELD_OUT = 160  # tasks
FAMILIES = ("files", "orders")  # as in the configs of the stages


def run(arguments: Sequence[str]) -> None:
    """All stages, each continued or passed over where an earlier start left it."""
    parser = argparse.ArgumentParser(
        "dcore demo", description="The whole method at nano size, on any machine."
    )
    parser.add_argument("--fresh", action="store_true", help=f"begin again: empty {DEMO}/ first")
    if parser.parse_args(list(arguments)).fresh:
        shutil.rmtree(DEMO, ignore_errors=True)
    started = time.perf_counter()

    def headline(number: int, text: str) -> None:
        print(f"\n{number}. {text} ({time.perf_counter() - started:,.0f} s)\n", flush=True)

    prepare_devices(MESH)
    from dcore_jax import distill, export_hf, rl, sft
    from dcore_jax.evaluation import accuracy_table, attempt_held_out, transcript
    from dcore_jax.sft.check import check_export
    from dcore_jax.training import load_policy

    headline(
        1, "A base: a small random Qwen3 learns single subtasks, and to decompose when it is shown the calls"
    )
    distillation = preset(DistillConfig, "distill_nano")
    base = sft.base_model(distillation.base, mesh=MESH, output=DEMO / "base")

    headline(2, "Self-distillation: the base decomposes, reasons, acts; what is verified becomes a corpus")
    corpus = replace(distillation, model=str(base), output=str(DEMO / "self_distilled"))
    distilled = distill.distill_seeds(corpus)
    print(distill.summary(distilled))
    refuse_stopped(distilled.stopped)

    headline(3, f"Packed SFT of the base on its own corpus, on {MESH} virtual devices")
    learning = replace(
        preset(SFTConfig, "sft_distilled_nano"),
        model=str(base),
        data=(str(DEMO / "self_distilled" / "corpus.jsonl"),),
        mesh=MESH,
        output=str(DEMO / "sft"),
    )
    taught = sft.train(learning)
    print(f"\n{sft.summary(taught)}")
    refuse_stopped(taught.preempted)

    headline(4, "Export to Hugging Face format, and the check that it computes the same")
    exported = DEMO / "hf_sft"
    if export_once(exported, taught.step, lambda: print(check_export(taught.output, exported))):
        shutil.rmtree(DEMO / "rl", ignore_errors=True)  # it went on from other weights

    headline(5, "DA-GRPO from there, rewarded in the tool world")
    rewarded = replace(preset(RLConfig, "rl_distilled_nano"), model=str(exported), output=str(DEMO / "rl"))
    rewarding = rl.train(rewarded)
    print(f"\n{rl.summary(rewarding)}")
    refuse_stopped(rewarding.preempted)
    final = DEMO / "hf"

    def export_policy() -> None:
        model, source = load_policy(rewarded.output)
        export_hf(model, final, source=source)

    export_once(final, rewarding.step, export_policy)

    headline(6, f"{HELD_OUT} tasks that none of them has seen, whole")
    stages = {
        name: attempt_held_out(folder, tasks=HELD_OUT, families=FAMILIES)
        for name, folder in {"base": base, "self-distilled": exported, "DA-GRPO": final}.items()
    }
    print(accuracy_table(stages))
    longest = max(stages["DA-GRPO"], key=lambda attempt: (attempt.solved, len(attempt.calls)))
    print(f"\nOne of them, as the last model answers it:\n\n{transcript(longest)}")
    print(
        f"\nall of it in {DEMO}/, {time.perf_counter() - started:,.0f} s; run it again from scratch: make demo FRESH=1"
    )


def refuse_stopped(stopped: bool) -> None:
    """Raises UserError: what a signal cut short is no stage that the next one may start from."""
    if stopped:
        raise UserError("stopped; run make demo again")


def export_once(folder: Path, step: int, export: Callable[[], None]) -> bool:
    """Exports the weights of `step` into `folder` unless they are there; whether it had to."""
    made_of = folder.with_name(f"{folder.name}.step")
    if folder.exists() and made_of.exists() and made_of.read_text() == str(step):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    export()
    write_text_atomic(made_of, str(step))
    return True


def preset(kind: type[Any], name: str) -> Any:
    """A config that travels with the package."""
    return read_config(kind, find_config(name))
