"""The self-distillation run: from seeds to a verified SFT corpus and its report. Read from top to bottom.

<output>/corpus.jsonl     records for SFT                report.html     the run for reading, one file
         manifest.json    counts, hashes, versions       journal/        every answer and outcome so far
         config.yaml      the effective config
         table6/<mode>/   the same for each mode, with --table6
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice, zip_longest
from pathlib import Path

from dcore_jax.atomic import write_text_atomic
from dcore_jax.config import config_to_dict
from dcore_jax.data.files import local_file
from dcore_jax.data.records import Rejections
from dcore_jax.distill.algorithm import Method
from dcore_jax.distill.ask import ModelRole
from dcore_jax.distill.config import MODE_NAMES, MODES, DistillConfig, Mode
from dcore_jax.distill.contamination import leave_out_contaminated, read_benchmarks
from dcore_jax.distill.corpus import CorpusSummary, write_corpus
from dcore_jax.distill.journal import Journal, read_outcomes
from dcore_jax.distill.labels import read_labels
from dcore_jax.distill.pipeline import run_pipeline
from dcore_jax.distill.report import Table6Row, summary_table, table6, write_report
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.distill.seeds import seeds_by_spec
from dcore_jax.distill.served_models import ServedModel, open_model
from dcore_jax.distill.tally import Summary
from dcore_jax.distill.templates import Templates
from dcore_jax.engines import check_engine_installed
from dcore_jax.errors import UserError
from dcore_jax.progress import log, progress_bar
from dcore_jax.training.preemption import preemption_signal
from dcore_jax.training.run_folder import (
    RunRecord,
    check_config_unchanged,
    lock_run_folder,
    record_run,
    run_began,
    run_record,
)

RECIPE = "distill"
_VERSIONS = ("dcore-jax", "jax", "flax", "transformers", "tokenizers", "jinja2", "vllm")
_CHANGED = {  # in the message that refuses a run with other inputs
    "prompts": "other prompts; put them back",
    "model": "another model in the same place; put it back",
    "labeller": "another labeller in the same place; put it back",
    "labels": "another file of labels; put it back",
}


@dataclass(frozen=True)
class ModeResult:
    """The result of one mode over all seeds."""

    mode: Mode
    counts: Summary
    corpus: CorpusSummary
    seconds: float  # wall time, over all starts of the run

    def row(self) -> Table6Row:
        """The mode's row of Table 6, over sequential, parallel and mixed samples: the other kinds are not decomposed."""
        by_kind = self.counts.by_kind
        decomposable = [by_kind[kind] for kind in ("sequential", "parallel", "mixed") if kind in by_kind]
        samples = sum(counts.samples for counts in decomposable)
        decomposed = sum(counts.decomposed for counts in decomposable)
        accepted = sum(counts.accepted for counts in decomposable)
        return Table6Row(MODE_NAMES[self.mode], samples, decomposed, accepted)


@dataclass(frozen=True)
class DistillResult:
    """The result of a run; `modes` has one entry, or one per mode with `table6`."""

    output: Path
    modes: tuple[ModeResult, ...]
    stopped: bool = False  # by SIGTERM: run the same command again to resume


def distill_seeds(config: DistillConfig) -> DistillResult:
    """Runs Algorithm 1 over the seeds, or resumes the run that is in the output folder.

    Call `dcore_jax.mesh.prepare_devices(config.mesh)` first.

    Raises:
      UserError: a mistake in config, seeds, prompts or model; a folder that holds another run.
    """
    output = Path(config.output)
    if not config.model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id>, or --model nano for the embedded one"
        )
    if not config.seeds:
        raise UserError("no seeds: give --seeds source:path, as toolace:data.json, or --seeds toolworld:500")
    check_engine_installed(config.engine)
    with lock_run_folder(output):
        check_config_unchanged(config, output, RECIPE)
        templates = Templates(config.prompts, config.call_format)
        samples, rejected = _samples(config)
        labels = read_labels(config.labels) if config.labels else None
        began = run_began(output)
        model = open_model(config.model, config, output, began)
        labeller = open_model(config.labeller, config, output, began) if config.labeller else None
        try:
            # Only now is there a run to go on with.
            record_run(config, output, RunRecord(RECIPE, config.model, config.dtype, began=began.isoformat()))
            digests = _digests(config, templates, model, labeller)
            results: list[ModeResult] = []
            for mode in MODES if config.table6 else (config.mode,):
                run = replace(config, mode=mode)
                folder = output / "table6" / mode if config.table6 else output
                log(f"{len(samples):,} seed samples, {run.choices()}, into {folder}")
                method = Method(run, templates, labels)
                result = _run_mode(run, folder, samples, rejected, method, model, labeller, digests)
                if result is None:
                    return DistillResult(output, tuple(results), stopped=True)
                results.append(result)
            return DistillResult(output, tuple(results))
        finally:
            model.close()
            if labeller:
                labeller.close()


def summary(result: DistillResult) -> str:
    """The text that a run prints at its end; for several modes the paper's Table 6."""
    if result.stopped:
        return "stopped; start the same line again to go on"
    if len(result.modes) > 1:
        return table6([mode.row() for mode in result.modes])
    (mode,) = result.modes
    decompositions = mode.row()
    return "\n".join(
        [
            summary_table(mode.counts, seconds=mode.seconds),
            f"decompositions passed: {decompositions.decomposed:,} of {decompositions.samples:,}",
            f"corpus {mode.corpus.path}: {mode.corpus.records:,} records, {mode.corpus.duplicates:,} duplicates left out; "
            f"to read: {result.output / 'report.html'}",
        ]
    )


def _samples(config: DistillConfig) -> tuple[list[SeedSample], Rejections]:
    """The run's seed samples, without contaminated ones and up to the limit, and what was left out."""
    by_spec, rejected = seeds_by_spec(config.seeds, strict=config.strict, seed=config.seed)
    if config.benchmarks:
        guard = read_benchmarks(config.benchmarks)
        by_spec = [leave_out_contaminated(samples, guard, rejected) for samples in by_spec]
    if not any(by_spec):
        raise UserError(
            f"no seed sample to start from: {'; '.join(rejected.lines()) or 'the files hold no rows'}"
        )
    samples = list(chain(*by_spec)) if config.limit is None else _first_of_each(by_spec, config.limit)
    return samples, rejected


def _first_of_each(by_spec: Sequence[Sequence[SeedSample]], limit: int) -> list[SeedSample]:
    """The first `limit` samples, taken in turns from the sources: a larger limit keeps what a smaller one took."""
    turns = chain.from_iterable(zip_longest(*by_spec))
    return list(islice((sample for sample in turns if sample is not None), limit))


def _run_mode(
    config: DistillConfig,
    output: Path,
    samples: Sequence[SeedSample],
    rejected: Rejections,
    method: Method,
    model: ServedModel,
    labeller: ServedModel | None,
    digests: Mapping[str, str],
) -> ModeResult | None:
    """One mode over all samples; None when the run was stopped."""
    folder = output / "journal"
    journal = Journal(folder)
    _check_inputs_unchanged(folder, digests)
    models: dict[ModelRole, ServedModel] = {"model": model}
    if labeller:
        models["labeller"] = labeller
    unfinished = [sample for sample in samples if sample.id not in journal.finished_ids]
    counts: Counter[str] = Counter()
    bar = progress_bar(len(samples), initial=len(samples) - len(unfinished), unit="sample")

    def show_progress(outcome: Outcome) -> None:
        counts["accepted" if outcome.accepted else outcome.stage] += 1
        bar.set_postfix(counts)
        bar.update()

    try:
        with preemption_signal() as stop_requested:
            complete = run_pipeline(
                unfinished,
                method,
                {role: served.template for role, served in models.items()},
                {role: served.engines for role, served in models.items()},
                journal,
                on_outcome=show_progress,
                stopped=lambda: stop_requested(0),
            )
    finally:
        bar.close()
        journal.close()
    return _finish(config, output, samples, rejected, digests, journal) if complete else None


def _finish(
    config: DistillConfig,
    output: Path,
    samples: Sequence[SeedSample],
    rejected: Rejections,
    digests: Mapping[str, str],
    journal: Journal,
) -> ModeResult:
    """Writes corpus, report and manifest from the outcomes on disk."""
    folder, by_id = output / "journal", {sample.id: sample for sample in samples}
    records = (record for outcome in read_outcomes(folder, by_id) for record in outcome.records)
    corpus = write_corpus(records, output, form=config.corpus, seed=config.seed)
    seconds, settings = journal.seconds, config_to_dict(config)
    counts = write_report(
        read_outcomes(folder, by_id),
        output / "report.html",
        seconds=seconds,
        config=settings,
        rejected_seeds=rejected,
        began=run_record(Path(config.output)).began,
    )
    result = ModeResult(config.mode, counts, corpus, seconds)
    manifest = {
        "corpus": {"file": corpus.path.name, "sha256": corpus.sha256, "records": corpus.records},
        "duplicate_records": corpus.duplicates,
        "samples": counts.overall.samples,
        "accepted": counts.overall.accepted,
        "decompositions": {"asked": result.row().samples, "passed": result.row().decomposed},
        "by_stage": dict(counts.overall.by_stage),
        "by_kind": {name: dict(group.by_stage) for name, group in sorted(counts.by_kind.items())},
        "by_source": {name: dict(group.by_stage) for name, group in sorted(counts.by_source.items())},
        "reasons": {f"{reason.stage}: {reason.text}": count for reason, count in counts.ordered_reasons()},
        "rejected_seeds": rejected.counts,
        "prompt_tokens": dict(counts.prompt_tokens),
        "generated_tokens": dict(counts.generated_tokens),
        "seconds": round(seconds, 3),
        "model": {"name": config.model, "digest": digests["model"]},
        **{f"{name}_sha256": digest for name, digest in digests.items() if name != "model"},
        "versions": _versions(),
        "config": settings,
    }
    write_text_atomic(output / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return result


def _digests(
    config: DistillConfig, templates: Templates, model: ServedModel, labeller: ServedModel | None
) -> dict[str, str]:
    """Hashes of a run's inputs that its config names only by path, seeds excepted."""
    digests = {"prompts": templates.digest(), "model": model.digest}
    if labeller:
        digests["labeller"] = labeller.digest
    if config.labels:
        with local_file(config.labels).open("rb") as file:
            digests["labels"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _check_inputs_unchanged(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises UserError where a digest is not that of the run's first start; saves those that are new."""
    paths = {name: folder / f"{name}.sha256" for name in digests}
    known = {name: path.read_text().strip() if path.exists() else "" for name, path in paths.items()}
    for name, digest in digests.items():
        if known[name] not in ("", digest):
            raise UserError(f"{folder.parent} holds a run with {_CHANGED[name]}, or give another --output")
    for name, digest in digests.items():
        if not known[name]:
            write_text_atomic(paths[name], digest + "\n")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
