"""The self-distillation run: seeds in, a verified SFT corpus and its report out. Read from top to bottom.

<output>/corpus.jsonl     what train_sft.py takes        report.html     the run for reading, one file
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

from dcore_jax.config import config_to_dict
from dcore_jax.data.files import local_file
from dcore_jax.data.records import Rejections
from dcore_jax.distill.algorithm import Method
from dcore_jax.distill.config import MODE_NAMES, MODES, DistillConfig, Mode
from dcore_jax.distill.contamination import leave_out_contaminated, read_benchmarks
from dcore_jax.distill.corpus import CorpusSummary, write_corpus
from dcore_jax.distill.journal import Journal, read_outcomes
from dcore_jax.distill.labels import read_labels
from dcore_jax.distill.pipeline import run_pipeline
from dcore_jax.distill.report import Table6Row, summary_table, table6, write_report
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.distill.seeds import seeds_by_spec
from dcore_jax.distill.speakers import Voice, open_voice
from dcore_jax.distill.tally import Summary
from dcore_jax.distill.templates import Templates
from dcore_jax.engines import check_engine_installed
from dcore_jax.errors import UserError
from dcore_jax.progress import log, progress_bar
from dcore_jax.training.preemption import preemption_signal
from dcore_jax.training.run_folder import RunRecord, check_config_unchanged, lock_run_folder, record_run

RECIPE = "distill"
_VERSIONS = ("dcore-jax", "jax", "flax", "transformers", "tokenizers", "jinja2", "vllm")
_OTHER = {
    "prompts": "other prompts; put them back",
    "model": "another model in the same place; put it back",
    "labeller": "another labeller in the same place; put it back",
    "labels": "another file of labels; put it back",
}


@dataclass(frozen=True)
class ModeResult:
    """How one pass over the seeds ended."""

    mode: Mode
    counts: Summary
    corpus: CorpusSummary
    seconds: float  # of all starts of the run

    def row(self) -> Table6Row:
        """Chains and parallel calls alone: the other kinds are not decomposed."""
        ends = [
            self.counts.by_kind[kind] for kind in ("sequential", "parallel") if kind in self.counts.by_kind
        ]
        samples = sum(end.samples for end in ends)
        decomposed = sum(end.decomposed for end in ends)
        return Table6Row(MODE_NAMES[self.mode], samples, decomposed, sum(end.accepted for end in ends))


@dataclass(frozen=True)
class DistillResult:
    """How a run ended."""

    output: Path
    modes: tuple[ModeResult, ...]
    stopped: bool = False  # SIGTERM: start the same line again to go on


def distill_seeds(config: DistillConfig) -> DistillResult:
    """Runs Algorithm 1 over the seeds, or goes on with a run that is already in the output folder.

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
        voice = open_voice(config.model, config, output)
        labeller = open_voice(config.labeller, config, output) if config.labeller else None
        try:
            # Only now is there a run to go on with.
            record_run(config, output, RunRecord(RECIPE, config.model, config.dtype))
            digests = _digests(config, templates, voice, labeller)
            results: list[ModeResult] = []
            for mode in MODES if config.table6 else (config.mode,):
                run = replace(config, mode=mode)
                folder = output / "table6" / mode if config.table6 else output
                log(f"{len(samples):,} seed samples, {run.choices()}, into {folder}")
                method = Method(run, templates, labels)
                result = _pass(run, folder, samples, rejected, method, voice, labeller, digests)
                if result is None:
                    return DistillResult(output, tuple(results), stopped=True)
                results.append(result)
            return DistillResult(output, tuple(results))
        finally:
            voice.close()
            if labeller:
                labeller.close()


def summary(result: DistillResult) -> str:
    """What a run has to say at its end; for several modes the table of the paper's Table 6."""
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
    by_spec, rejected = seeds_by_spec(config.seeds, strict=config.strict)
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


def _pass(
    config: DistillConfig,
    output: Path,
    samples: Sequence[SeedSample],
    rejected: Rejections,
    method: Method,
    voice: Voice,
    labeller: Voice | None,
    digests: Mapping[str, str],
) -> ModeResult | None:
    """One mode over all samples; None when it was told to stop."""
    folder = output / "journal"
    journal = Journal(folder)
    _refuse_other_inputs(folder, digests)
    voices = {"model": voice, **({"labeller": labeller} if labeller else {})}
    left = [sample for sample in samples if sample.id not in journal.finished_ids]
    seen: Counter[str] = Counter()
    bar = progress_bar(len(samples), initial=len(samples) - len(left), unit="sample")

    def note(outcome: Outcome) -> None:
        seen["accepted" if outcome.accepted else outcome.stage] += 1
        bar.set_postfix(seen)
        bar.update()

    try:
        with preemption_signal() as stop_requested:
            complete = run_pipeline(
                left,
                method,
                {name: found.tokenizer for name, found in voices.items()},  # type: ignore[misc]
                {name: found.engines for name, found in voices.items()},  # type: ignore[misc]
                journal,
                on_outcome=note,
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
    """Corpus, report and manifest, from the outcomes on disk."""
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
    )
    result = ModeResult(config.mode, counts, corpus, seconds)
    manifest = {
        "corpus": {"file": corpus.path.name, "sha256": corpus.sha256, "records": corpus.records},
        "duplicate_records": corpus.duplicates,
        "samples": counts.ends.samples,
        "accepted": counts.ends.accepted,
        "decompositions": {"asked": result.row().samples, "passed": result.row().decomposed},
        "by_stage": dict(counts.ends.by_stage),
        "by_kind": {name: dict(ends.by_stage) for name, ends in sorted(counts.by_kind.items())},
        "by_source": {name: dict(ends.by_stage) for name, ends in sorted(counts.by_source.items())},
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
    _write_whole(output / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return result


def _digests(
    config: DistillConfig, templates: Templates, voice: Voice, labeller: Voice | None
) -> dict[str, str]:
    """Hashes of what a run reads besides its seeds: the config only names it."""
    digests = {"prompts": templates.digest(), "model": voice.digest}
    if labeller:
        digests["labeller"] = labeller.digest
    if config.labels:
        with local_file(config.labels).open("rb") as file:
            digests["labels"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _refuse_other_inputs(folder: Path, digests: Mapping[str, str]) -> None:
    """Holds the digests against those that the run was started with, and notes those that are not there yet."""
    paths = {name: folder / f"{name}.sha256" for name in digests}
    known = {name: path.read_text().strip() if path.exists() else "" for name, path in paths.items()}
    for name, digest in digests.items():
        if known[name] not in ("", digest):
            raise UserError(f"{folder.parent} holds a run with {_OTHER[name]}, or give another --output")
    for name, digest in digests.items():
        if not known[name]:
            _write_whole(paths[name], digest + "\n")


def _write_whole(path: Path, text: str) -> None:
    """A kill amid the writing must not leave half a file behind."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
