"""The journal of a run: every answer by sample and question, and every outcome, in append-only JSONL shards.

A killed process may leave a torn last line, which is cut off at the next start. On resume, finished samples are skipped, so
each outcome is written once; the answers of unfinished samples are replayed instead of asked again.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dcore_jax.atomic import write_text_atomic
from dcore_jax.distill.ask import Answer
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.errors import UserError

SHARDS = 16
_SYNC_SECONDS = 5.0
_ID = b'{"id": "'  # the first bytes of every line


class Journal:
    """The journal of one run folder; one process at a time.

    Raises:
      UserError: a line that is broken and not the last of its file, naming file and line.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[bytes]] = {}
        self._synced = self._started = time.monotonic()
        self._earlier = _earlier_seconds(folder)
        self.finished_ids = {name for path in _paths(folder, "outcomes") for name, _ in _ids(path)}
        self._answers: dict[str, dict[str, Answer]] = {}
        for path in _paths(folder, "answers"):
            for line in _answer_lines(path):
                if line["id"] not in self.finished_ids:
                    answer = Answer(line["text"], line["finish_reason"], *line["tokens"])
                    self._answers.setdefault(line["id"], {})[line["key"]] = answer

    @property
    def seconds(self) -> float:
        """Wall time of the run, over all its starts."""
        return self._earlier + time.monotonic() - self._started

    def take_answers(self, sample_id: str) -> dict[str, Answer]:
        """The answers that earlier starts received for a sample, by question; the journal forgets them, to free memory."""
        return self._answers.pop(sample_id, {})

    def write_answer(self, sample_id: str, key: str, answer: Answer) -> None:
        """Appends an answer; on disk after the next `flush`."""
        tokens = [answer.prompt_tokens, answer.generated_tokens]
        line = {
            "id": sample_id,
            "key": key,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "tokens": tokens,
        }
        self._append("answers", sample_id, line)

    def write_outcome(self, outcome: Outcome) -> None:
        """Appends the outcome of a sample; on disk after the next `flush`."""
        self._append("outcomes", outcome.sample.id, _outcome_line(outcome))

    def flush(self) -> None:
        """Hands all lines to the operating system, so that a killed process loses none; syncs the disk every few seconds."""
        for file in self._files.values():
            file.flush()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Syncs and closes the files."""
        self._sync()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _sync(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        write_text_atomic(self._folder / "seconds.json", json.dumps({"seconds": round(self.seconds, 3)}))
        self._synced = time.monotonic()

    def _append(self, kind: str, sample_id: str, line: dict[str, Any]) -> None:
        name = f"{kind}-{_shard(sample_id):02d}.jsonl"
        if name not in self._files:
            self._files[name] = (self._folder / name).open("ab", buffering=1 << 16)
        self._files[name].write(json.dumps(line, ensure_ascii=True).encode() + b"\n")


def read_outcomes(folder: Path, samples: Mapping[str, SeedSample]) -> Iterator[Outcome]:
    """Every outcome of a run, one at a time, ordered by shard and then by sample id.

    Args:
      samples: the run's seed samples by id; outcomes of others (of a run with a larger limit) are left out.
    """
    for number in range(SHARDS):
        path = folder / f"outcomes-{number:02d}.jsonl"
        # Only offsets are sorted, so that memory does not hold a shard.
        offsets = sorted((name, offset) for name, offset in _ids(path) if name in samples)
        if offsets:
            with path.open("rb") as file:
                for name, offset in offsets:
                    file.seek(offset)
                    yield _outcome(json.loads(file.readline()), samples[name])


def _outcome_line(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.sample.id,
        "stage": outcome.stage,
        "reason": outcome.reason,
        "attempts": outcome.attempts,
        "subtasks": outcome.subtasks,
        "prompt_tokens": outcome.prompt_tokens,
        "generated_tokens": outcome.generated_tokens,
        "last_text": outcome.last_text,
        "records": outcome.records,
    }


def _outcome(line: dict[str, Any], sample: SeedSample) -> Outcome:
    fields = {key: value for key, value in line.items() if key != "id"}
    return Outcome(
        sample, **{**fields, "subtasks": tuple(line["subtasks"]), "records": tuple(line["records"])}
    )


def _shard(sample_id: str) -> int:
    return hashlib.sha256(sample_id.encode()).digest()[0] % SHARDS


def _paths(folder: Path, kind: str) -> list[Path]:
    """The existing shards of a kind, with torn last lines cut off."""
    paths = [folder / f"{kind}-{number:02d}.jsonl" for number in range(SHARDS)]
    for path in paths:
        _cut_torn_line(path)
    return [path for path in paths if path.exists()]


def _ids(path: Path) -> Iterator[tuple[str, int]]:
    """The id and byte offset of every line; the rest of a line is not decoded, which makes a start fast."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if not line.startswith(_ID) or not line.endswith(b"}\n"):
                    raise ValueError
                yield json.loads(line[len(_ID) - 1 : line.index(b'"', len(_ID)) + 1]), offset
            except ValueError:
                raise _broken_line(path, number) from None
            offset += len(line)


def _answer_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise _broken_line(path, number) from None


def _broken_line(path: Path, number: int) -> UserError:
    return UserError(f"{path}:{number}: not a line of a journal; take it out, or start in another folder")


def _cut_torn_line(path: Path) -> None:
    """Truncates a file after its last newline, which is searched for from the end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - (1 << 16))
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)


def _earlier_seconds(folder: Path) -> float:
    try:
        return float(json.loads((folder / "seconds.json").read_text())["seconds"])
    except (OSError, ValueError, KeyError):
        return 0.0
