"""A run's folder: its lock, what it was started with, and the checks that a resumed run is the same run.

<output>/.lock        held while a process runs in the folder
         config.yaml  the effective config
         run.json     the recipe, the model its weights came from, what its checkpoints hold, when it began
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dcore_jax.atomic import atomic_path, write_text_atomic
from dcore_jax.config import config_to_dict, differences, read_config, write_config
from dcore_jax.errors import UserError
from dcore_jax.lora import LoraConfig
from dcore_jax.weights import local_folder

C = TypeVar("C")

_OTHER_FOLDER = "give another --output"
DATA = "data_sha256"  # field of a checkpoint's JSON: what the run trains on


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """`run.json`: what must be known of a run to load its policy, without knowing its recipe."""

    recipe: str  # sft, rl, distill
    model: str  # folder or hub id that the weights came from; a folder inside the run is relative to it
    param_dtype: str = "float32"  # of the checkpoints' parameters
    ema: bool = False  # whether checkpoints hold a moving average
    began: str = (
        ""  # local date and time of the run's first start, which its chat template may write; ISO 8601
    )
    lora: dict[str, Any] | None = None  # LoraConfig's fields, where checkpoints hold adapters alone


def lora_record(lora: LoraConfig) -> dict[str, Any] | None:
    """`RunRecord.lora` of a run with these options."""
    return config_to_dict(lora) if lora else None


@contextlib.contextmanager
def lock_run_folder(output: Path) -> Iterator[None]:
    """Makes the folder and holds its lock; raises UserError where another process holds it or it cannot be written to."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made ({error.strerror})") from None
    if jax.process_index() != 0:
        yield
        return
    try:
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{output}: cannot be written to ({error.strerror}); {_OTHER_FOLDER}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{output}: another process is training in it; wait for it or {_OTHER_FOLDER}"
            ) from None
        yield


def check_config_unchanged(config: Any, output: Path, recipe: str, *, hint: str = _OTHER_FOLDER) -> None:
    """Compares the config with that of the run in this folder, if there is one.

    Raises:
      UserError: naming every field that differs and may not change in a run; another recipe's run; ends with `hint`.
    """
    if not (output / "config.yaml").exists():
        return
    started = config_of_run(type(config), output, recipe, hint=hint)
    changed = differences(started, config)
    if changed:
        raise UserError(f"{output} holds a run with another config ({'; '.join(changed)}); {hint}")


def config_of_run(kind: type[C], run: Path, recipe: str, *, hint: str = _OTHER_FOLDER) -> C:
    """The config that a run was last started with; raises UserError for a folder without one, or of another recipe."""
    path = run / "config.yaml"
    if not path.exists():
        raise UserError(f"{run}: no config.yaml in it; {hint}")
    found = run_record(run).recipe
    if found != recipe:
        raise UserError(f"{run}: holds a run of another recipe ({found}, not {recipe}); {hint}")
    return read_config(kind, path)


def run_record(run: Path) -> RunRecord:
    """What `run.json` says.

    Raises:
      UserError: no run in the folder, a run of an older version, or a file that cannot be read.
    """
    path = run / "run.json"
    if not path.exists():
        if (run / "config.yaml").exists():
            raise UserError(
                f"{run}: a run of an older version, which kept no run.json; export it with that version or train again"
            )
        raise UserError(f"{run}: no run in it; give the folder of an SFT or RL run")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return RunRecord(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error})") from None


def run_began(output: Path) -> datetime:
    """When the run in this folder was first started, or now: what its chat template writes as the date, in every process.

    A run without checkpoints that was stopped before `record_run` begins when it is started again.
    """
    began = datetime.now().replace(microsecond=0)
    if (output / "run.json").exists():
        path, text = output / "run.json", run_record(output).began
        try:
            began = datetime.fromisoformat(text) if text else began
        except ValueError:
            raise UserError(
                f"{path}: began is {text!r}; write a date and time, as {began.isoformat()}"
            ) from None
    if jax.process_count() > 1:  # hosts may have other clocks and time zones
        parts = np.array(began.timetuple()[:6], np.int32)
        year, month, day, hour, minute, second = map(int, multihost_utils.broadcast_one_to_all(parts))
        began = datetime(year, month, day, hour, minute, second)
    return began


def record_run(config: Any, output: Path, record: RunRecord) -> None:
    """Writes `config.yaml` and `run.json`; call it when nothing of the user's can be wrong any more."""
    if jax.process_index() == 0:
        write_text_atomic(output / "run.json", json.dumps(dataclasses.asdict(record), indent=2) + "\n")
        with atomic_path(output / "config.yaml") as unfinished:
            write_config(config, unfinished)


def model_of_run(run: Path, record: RunRecord) -> Path:
    """The folder that a run's weights came from; raises UserError where it is not found again."""
    if (run / record.model / "config.json").exists():
        return run / record.model
    try:
        return local_folder(record.model)
    except UserError:
        raise UserError(
            f"{run}: its model {record.model} is not found from here; start this in the folder that the run was started in"
        ) from None


def model_name(run: Path, folder: Path, named: str) -> str:
    """How `run.json` names a model: relative to the run where its folder lies inside, else as the user named it."""
    return str(folder.relative_to(run)) if folder.is_relative_to(run) else named


def data_fingerprint(parts: Iterable[bytes | memoryview]) -> dict[str, str]:
    """The field of a checkpoint's JSON object that tells these data from others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return {DATA: digest.hexdigest()}


def check_same_data(output: Path, saved: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Compares the data's fingerprint with the checkpoint's; one without a fingerprint is taken as it is.

    Raises:
      UserError: other data, in which the saved position would mean nothing.
    """
    if saved.get(DATA, now[DATA]) != now[DATA]:
        raise UserError(
            f"{output}: the data are not those the run started with; restore them or {_OTHER_FOLDER}"
        )


def last_checkpoint(output: Path) -> str:
    """Whether a run that had to stop can go on from a checkpoint, in words."""
    whole = next((output / "checkpoints").glob("[0-9]*"), None)
    return "the last checkpoint is good" if whole else "and no checkpoint was saved before"
