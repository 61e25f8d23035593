"""What a run is made from: the model's folder, the samples, and the stream of packed batches."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import grain
import jax
from jax.experimental import multihost_utils

from dcore_jax.atomic import write_text_atomic
from dcore_jax.data import load_samples
from dcore_jax.data.chat_template import chat_template
from dcore_jax.data.contamination import read_benchmarks
from dcore_jax.data.packing import count_batches, packed_batches
from dcore_jax.data.store import SampleStore
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.errors import UserError
from dcore_jax.models import read_model_config
from dcore_jax.nano import NANO, embedded_data, embedded_model
from dcore_jax.progress import log
from dcore_jax.sft.config import SFTConfig
from dcore_jax.toolworld.spec import is_spec
from dcore_jax.training.run_folder import data_fingerprint
from dcore_jax.weights import local_folder


def check_named(config: SFTConfig) -> None:
    """Raises UserError where no model or no data is named."""
    if not config.model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id>, or --model nano for the embedded one"
        )
    if not config.data:
        raise UserError("no data: give --data <files>, or --data toolworld for the embedded sample")


def model_and_files(config: SFTConfig, output: Path) -> tuple[Path, tuple[str, ...]]:
    """The model's folder and the data files; what is embedded is written into the run's folder first, by process 0."""
    embedded = output / "embedded"
    if jax.process_index() == 0:
        _model_and_files(config, embedded)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dcore_jax embedded")
    return _model_and_files(config, embedded)


def _model_and_files(config: SFTConfig, embedded: Path) -> tuple[Path, tuple[str, ...]]:
    if config.model == NANO:
        folder = embedded_model(embedded, config.nano, config.seed)
    else:
        folder = local_folder(config.model)
    files = (
        str(embedded_data(embedded, name, config.seed)) if is_spec(name) else name for name in config.data
    )
    return folder, tuple(files)


def load_data(
    config: SFTConfig, folder: Path, files: tuple[str, ...], output: Path, began: datetime
) -> SampleStore:
    """The samples of the files; prints the report of what was read and left out, and writes it to data.json.

    Args:
      began: the date and time that the chat template may write.
    """
    model = read_model_config(folder)
    main = jax.process_index() == 0
    store, report = load_samples(
        files,
        chat_template(load_tokenizer(folder), config.chat_template_kwargs, began),
        mask=config.loss_mask,
        # A position the model was never made for would train on noise.
        max_length=min(config.packing.length, model.context_length),
        strict=config.strict,
        progress=main,
        guard=read_benchmarks(config.benchmarks) if config.benchmarks else None,
        seed=config.seed,
    )
    log(str(report))
    if int(store.tokens.max()) >= model.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer gives id {int(store.tokens.max())}, config.json has vocab_size {model.vocab_size}"
        )
    if main:
        summary = {
            "files": list(files),
            "sources": [asdict(source) for source in report.sources],
            "records": report.records,
            "turns": report.turns,
            "learned": report.learned,
            "samples": report.samples,
            "tokens": report.tokens,
            "loss_tokens": report.loss_tokens,
            "unseen_tools": report.unseen_tools,
            "rejected": {**report.rejected_records.counts, **report.rejected_turns.counts},
        }
        write_text_atomic(output / "data.json", json.dumps(summary, indent=2) + "\n")
    return store


def store_fingerprint(store: SampleStore) -> dict[str, str]:
    """Tells these samples, in this order, from others."""
    arrays = [store.tokens, store.offsets, store.loss_bits, store.denominator_bits]
    if store.weights is not None:
        arrays.append(store.weights)
    return data_fingerprint(array.data.cast("B") for array in arrays)


@dataclass(frozen=True)
class BatchStream:
    """The part of the endless sequence of epochs that a run trains on.

    With `steps` it does not end; with `epochs` it ends after the last one. A finished run that is given more epochs or steps
    goes on with a new stream, which begins where the old one ended.
    """

    first_step: int = 0  # optimizer steps done before it
    first_epoch: int = 0
    epochs: int | None = None  # where it ends, counted from 0; None: never

    @classmethod
    def from_config(cls, config: SFTConfig) -> "BatchStream":
        """The stream of a new run."""
        return cls(epochs=None if config.steps else config.epochs)

    def total_steps(self, config: SFTConfig, store: SampleStore) -> int:
        """The step at which the run ends."""
        if config.steps is not None:
            return config.steps
        assert self.epochs is not None
        if self.first_epoch >= self.epochs:
            return self.first_step
        return self.first_step + count_batches(
            store, first_epoch=self.first_epoch, epochs=self.epochs, **_batching(config)
        )

    def batches(self, config: SFTConfig, store: SampleStore) -> grain.IterDataset:
        """The batches that `total_steps` counts."""
        # A stream that has nothing left is still asked for an iterator.
        epochs = None if self.epochs is None else max(self.epochs, self.first_epoch + 1)
        return packed_batches(store, first_epoch=self.first_epoch, epochs=epochs, **_batching(config))

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


def resumed_stream(
    config: SFTConfig, saved: Mapping[str, Any], step: int, finished: bool
) -> tuple[BatchStream, bool]:
    """The stream that a resumed run goes on with, and whether it is the saved one (its iterator's state is to be restored).

    Args:
      saved: what `to_json` gave. step: of the checkpoint. finished: whether the run had reached its end there.

    Raises:
      UserError: epochs that changed before the run had finished, which would change the packing under way.
    """
    stream, wanted = BatchStream(**saved), BatchStream.from_config(config).epochs
    if wanted == stream.epochs:
        return stream, True
    if finished and stream.epochs is not None:
        return BatchStream(first_step=step, first_epoch=stream.epochs, epochs=wanted), False
    if stream.epochs is None:
        raise UserError(f"{config.output}: the run was started with --steps; give it more with --steps")
    raise UserError(
        f"{config.output}: the run has not finished its {stream.epochs} epochs (step {step}); go on with "
        f"--epochs {stream.epochs} first, then give it more"
    )


def _batching(config: SFTConfig) -> dict[str, Any]:
    """What decides the batches: the ones that are counted are the ones that are trained on."""
    return {
        "rows": config.rows,
        "pack_length": config.packing.length,
        "seed": config.seed,
        "packing": config.packing.method,
        "order": config.packing.order,
        "bins": config.packing.bins,
    }
