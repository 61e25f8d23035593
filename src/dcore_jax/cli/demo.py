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
from dcore_jax.nano.config import NANO_BASE
from dcore_jax.rl.config import RLConfig
from dcore_jax.sft.config import SFTConfig

DEMO = Path("demo")
MESH = "8"  # of the SFT run: virtual devices on a CPU
HELD_OUT = 240  # tasks


def run(arguments: Sequence[str]) -> None:
    """All stages, each continued or passed over where an earlier start left it."""
    parser = argparse.ArgumentParser(
        "dcore demo", description="The whole method at nano size, on any machine."
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help=f"begin again: empty {DEMO}/ first, and train the base too, which takes hours on a CPU",
    )
    fresh = parser.parse_args(list(arguments)).fresh
    if fresh:
        shutil.rmtree(DEMO, ignore_errors=True)
    started = time.perf_counter()
    seconds: dict[str, float] = {}

    def headline(number: int, name: str, text: str) -> None:
        seconds[name] = time.perf_counter() - started  # when it began
        print(f"\n{number}. {text} ({seconds[name]:,.0f} s)\n", flush=True)

    prepare_devices(MESH)
    from dcore_jax import distill, export_hf, rl, sft
    from dcore_jax.evaluation import accuracy_table, attempt_tasks, transcript
    from dcore_jax.evaluation.stages import write_stages
    from dcore_jax.sft.check import check_export
    from dcore_jax.toolworld import KINDS, generate_tasks
    from dcore_jax.training import load_policy
    from dcore_jax.weights import local_folder

    headline(1, "base", "A base that serves single requests, and decomposes when it is shown the calls")
    own = DEMO / "base"  # of a fresh start
    if fresh or own.exists():
        base = sft.base_model("base_nano", mesh=MESH, output=own)
    else:
        base = local_folder(NANO_BASE)
        print(f"the one in the repository, {base.name}/: {NANO_BASE}, as its README.md says it was trained")

    headline(
        2,
        "distillation",
        "Self-distillation: the base decomposes, reasons, acts; what is verified becomes a corpus",
    )
    corpus = replace(
        preset(DistillConfig, "distill_nano"), model=str(base), output=str(DEMO / "self_distilled")
    )
    distilled = distill.distill_seeds(corpus)
    print(distill.summary(distilled))
    refuse_stopped(distilled.stopped)

    headline(3, "sft", f"Packed SFT of the base on its own corpus, on {MESH} virtual devices")
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

    headline(4, "export", "Export to Hugging Face format, and the check that it computes the same")
    exported = DEMO / "hf_sft"
    if export_once(exported, taught.step, lambda: print(check_export(taught.output, exported))):
        shutil.rmtree(DEMO / "rl", ignore_errors=True)  # it went on from other weights

    headline(5, "rl", "DA-GRPO from there, rewarded in the tool world")
    rewarded = replace(preset(RLConfig, "rl_distilled_nano"), model=str(exported), output=str(DEMO / "rl"))
    rewarding = rl.train(rewarded)
    print(f"\n{rl.summary(rewarding)}")
    refuse_stopped(rewarding.preempted)
    final = DEMO / "hf"

    def export_policy() -> None:
        model, source = load_policy(rewarded.output)
        export_hf(model, final, source=source)

    export_once(final, rewarding.step, export_policy)

    headline(6, "evaluation", f"{HELD_OUT} tasks that none of them has seen, whole")
    tasks = generate_tasks(HELD_OUT, seed=0, split="test", kinds=KINDS)
    folders = {"base": base, "self-distilled": exported, "RL": final}
    stages = {name: attempt_tasks(folder, tasks) for name, folder in folders.items()}
    print(accuracy_table(stages))
    longest = max(stages["RL"], key=lambda attempt: (attempt.solved, len(attempt.calls)))
    print(f"\nOne of them, as the last model answers it:\n\n{transcript(longest)}")
    seconds["all"] = time.perf_counter() - started
    page = write_stages(DEMO, stages, seconds, model=NANO_BASE if base != own / "hf" else "base_nano")
    print(f"\nall of it in {DEMO}/, to read: {page}; {seconds['all']:,.0f} s")


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
