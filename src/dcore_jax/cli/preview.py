"""`dcore preview`: data as the model will see them, before anything is trained."""

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from dcore_jax.atomic import write_text_atomic
from dcore_jax.cli.options import parse_options
from dcore_jax.errors import UserError
from dcore_jax.sft.config import SFTConfig

DESCRIPTION = "The first samples of data as the model will see them: what is masked, what is learned, what is left out, and why."


@dataclass(frozen=True)
class PreviewConfig:
    """Data as the model will see them."""

    data: tuple[str, ...] = ()
    """Data as `dcore sft` takes them; also the first words of the command: `dcore preview train.jsonl --model M`."""
    model: str = ""
    """Hugging Face folder or hub id whose tokenizer and template are used; `nano`: the embedded one."""
    samples: int = 4
    """Samples that are shown."""
    records: int = 2000
    """Records that are read, for the counts."""
    page: str = "preview.html"
    """Where the HTML page goes."""
    length: int = 16384
    """Tokens in a packed row; a longer sample is left out."""
    rows: int = 16
    """Packed rows per optimizer step, for the estimate of steps."""
    epochs: int = 3
    """Passes over the samples, for the estimate of steps."""
    loss_mask: Literal["last_turn", "release"] = "last_turn"
    """Tokens that carry loss; release: the authors' mask and denominator."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables of the chat template as key=value, such as enable_thinking=false."""

    def __post_init__(self) -> None:
        for name in ("samples", "records", "length", "rows", "epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


def run(arguments: Sequence[str]) -> None:
    """Parses, reads, prints the samples and the counts, and writes the page."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    given = [*(["--data", *names] if names else []), *arguments[len(names) :]]
    config = parse_options(
        PreviewConfig, given, description=DESCRIPTION, default_config=lambda _: None, program="dcore preview"
    )
    if not config.data or not config.model:
        raise UserError(
            "give the data and --model: dcore preview train.jsonl --model <Hugging Face folder or hub id>"
        )
    from dcore_jax.preview import html_page, terminal_text

    with TemporaryDirectory() as embedded:  # for the nano model and the tool world, where they are asked for
        shown, facts = _preview(config, Path(embedded))
    print(terminal_text(shown, colours=sys.stdout.isatty()))
    print(facts)
    write_text_atomic(Path(config.page), html_page(", ".join(config.data), facts, shown))
    print(f"wrote {config.page}")


def _preview(config: PreviewConfig, embedded: Path) -> tuple[list[tuple[str, Any]], str]:
    from dcore_jax.data.chat_template import chat_template
    from dcore_jax.data.notation import template_notation
    from dcore_jax.data.record import Rejections
    from dcore_jax.data.records import iterate_records
    from dcore_jax.data.tokenizer import load_tokenizer
    from dcore_jax.models import read_model_config
    from dcore_jax.preview import collect
    from dcore_jax.sft.inputs import model_and_files

    sft = SFTConfig(model=config.model, data=config.data)
    folder, files = model_and_files(sft, embedded)
    template = chat_template(load_tokenizer(folder), config.chat_template_kwargs, datetime.now())
    length = min(config.length, read_model_config(folder).context_length)
    rejected = Rejections()
    records = itertools.islice(iterate_records(files, rejected), config.records)
    preview = collect(
        records, template, rejected=rejected, mask=config.loss_mask, max_length=length, samples=config.samples
    )
    asked = template_notation(template) or "no notation (it shows no tools)"
    lines = {"model": f"{config.model}, the template asks for calls in {asked}"}
    counts = preview.counts
    if preview.report is not None and preview.store is not None:
        lines["shapes"] = _counted(counts.shapes)
        lines["calls"] = (
            f"{counts.calls:,} in {counts.calling_turns:,} turns; written as {_counted(counts.notations) or 'none'}"
        )
        lines["thoughts"] = f"{counts.thoughts:,} turns have one"
        lines["tools"] = f"{counts.with_tools:,} records give theirs to the template"
        lines["packs"] = _packs(config, preview.store)
    report = str(preview.report) if preview.report else f"no sample for SFT: {preview.problem}"
    prompts, parts = _prompts(config, files, template)
    facts = "\n".join([*(f"{name:<10}{text}" for name, text in lines.items()), report, *prompts])
    if sum(counts.shapes.values()) == config.records:
        facts += f"\nread      the first {config.records:,} records only (--records)"
    return [*preview.samples, *(parts if not preview.samples else [])], facts


def _packs(config: PreviewConfig, store: Any) -> str:
    from dcore_jax.data.packing import count_batches

    longest = int(store.lengths.max())
    length = max(config.length, longest)
    packs = count_batches(store, rows=1, pack_length=length, seed=0, epochs=1)
    steps = count_batches(store, rows=config.rows, pack_length=length, seed=0, epochs=config.epochs)
    filled = len(store.tokens) / (packs * length) if packs else 0.0
    return (
        f"{packs:,} rows of {length:,} tokens ({filled:.0%} filled) an epoch; {steps:,} steps of {config.rows} rows in "
        f"{config.epochs} epochs; the longest sample has {longest:,} tokens"
    )


def _prompts(
    config: PreviewConfig, files: Sequence[str], template: Any
) -> tuple[list[str], list[tuple[str, Any]]]:
    """What RL would make of the same data: lines for the table, and the first prompts with their references."""
    from dcore_jax.calls import render_calls
    from dcore_jax.data.notation import template_notation
    from dcore_jax.data.record import Rejections
    from dcore_jax.preview import Segment
    from dcore_jax.rl.prompts import Prompt, questions_in, render_prompts

    left_out = Rejections()
    found = questions_in(files, template_notation(template) or "python", left_out)
    questions = list(itertools.islice(found, config.records))
    notations = Counter(question.call_format for question in questions if question.reference)
    calling = sum(bool(question.reference) for question in questions)
    lines = [
        f"as RL     {len(questions):,} prompts, {calling:,} expect a call ({_counted(notations) or 'no notation'})"
    ]
    lines += [f"as RL, left out: {line}" for line in left_out.lines()]
    prompts: list[Prompt] = render_prompts(
        questions[: config.samples], template, max_length=config.length, rejections=Rejections()
    )
    parts = []
    for prompt in prompts:
        question = prompt.question
        expected = (
            render_calls(question.reference, question.call_format) if question.reference else "(no call)"
        )
        parts.append(
            (
                f"RL prompt, {question.origin}",
                (Segment(prompt.text, "context", False), Segment(f"\nexpected: {expected}", "call", True)),
            )
        )
    return lines, parts


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())
