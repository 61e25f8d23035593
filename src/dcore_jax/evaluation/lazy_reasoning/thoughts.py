"""Thoughts with their outcome, from BFCL's result and score files, from `dcore eval`, or from an RL run's rollouts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl.results import Row, find_result_files, read_rows

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Thought:
    """What a model thought before one answer or one step, and whether the whole answer is right."""

    id: str
    category: str
    text: str
    correct: bool


@dataclass(frozen=True)
class Thoughts:
    """All thoughts of a model.

    Args:
      notes: damaged lines, answers without a thought or a verdict, with their number.
    """

    model: str
    thoughts: tuple[Thought, ...]
    notes: tuple[str, ...]


def is_rollout_log(path: str | Path) -> bool:
    """Whether a path is a rollouts.jsonl or the folder of a run that has one."""
    path = Path(path)
    return path.is_file() or (path / "rollouts.jsonl").is_file()


def read_rollouts(path: str | Path) -> Thoughts:
    """Thoughts of an RL run's rollouts.jsonl; the categories are those of the prompts.

    Raises:
      UserError: the file cannot be read.
    """
    path = Path(path)
    file = path if path.is_file() else path / "rollouts.jsonl"
    thoughts, notes, without = [], [], 0
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            text, name = row["response"], f"{row['step']}-{row['group']}"
            verdict, category = bool(row["correct"]), str(row.get("category") or "all")
        except (ValueError, KeyError, TypeError) as error:
            notes.append(f"{file}:{number}: is no rollout: {type(error).__name__}: {error}")
            continue
        thought = thought_in(text)
        if thought:
            thoughts.append(Thought(name, category, thought, verdict))
        without += not thought
    if without:
        notes.append(f"{file}: {without} responses without a thought are not counted")
    return Thoughts(file.parent.name, tuple(thoughts), tuple(notes))


def read_results(
    results: str | Path,
    wrong: Mapping[str, set[str]],
    model_name: str | None = None,
    *,
    field_only: bool = False,
) -> Thoughts:
    """Thoughts of stored BFCL outputs.

    Args:
      wrong: by category, ids that are answered wrongly; a category that is missing has no verdicts and is left out.
      field_only: as the release's script reads them: `reasoning_content` and nothing else, an empty one being a thought too. A
        thought that was never closed stands in the result and is not seen by it.
    """
    model, files = find_result_files(results, model_name)
    thoughts: list[Thought] = []
    notes: list[str] = []
    for file in files:
        rows, damaged = read_rows(file.path)
        notes += damaged
        if file.category not in wrong:
            notes.append(f"{file.path}: no scores of {file.category}; not counted")
            continue
        without = 0
        for row in rows:
            found = _thoughts_of(row, field_only)
            correct = row.id not in wrong[file.category]
            thoughts += [Thought(row.id, file.category, text, correct) for text in found]
            without += not found
        if without:
            notes.append(f"{file.path}: {without} answers without a thought are not counted")
    return Thoughts(model, tuple(thoughts), tuple(notes))


def read_wrong_ids(scores: str | Path, model_name: str | None = None) -> dict[str, set[str]]:
    """Ids of wrong answers by category, from BFCL's score files or from a folder that `dcore eval bfcl` wrote.

    Raises:
      UserError: the folder holds neither.
    """
    folder = Path(scores)
    if (folder / "items.jsonl").is_file():
        return _wrong_items(folder / "items.jsonl")
    paths = [path for path in sorted(folder.rglob("BFCL_v*_score.json")) if _is_of(path, folder, model_name)]
    wrong = {}
    for path in paths:
        category = path.name.split("_", 2)[2].removesuffix("_score.json")
        try:
            rows = [
                json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
            ]
            wrong[category] = {row["id"] for row in rows if "id" in row}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no score file of BFCL: {error}") from error
    if not wrong:
        raise UserError(
            f"{folder} holds no BFCL_v3_<category>_score.json and no items.jsonl; give the folder of the scores, or none to "
            "have them made"
        )
    return wrong


def thought_in(text: str) -> str:
    """The thought of a response that holds it in tags; one that is never closed reaches to the end."""
    if _CLOSE in text:
        return text.rpartition(_CLOSE)[0].partition(_OPEN)[2] or text.rpartition(_CLOSE)[0]
    return text.partition(_OPEN)[2] if text.lstrip().startswith(_OPEN) else ""


def _thoughts_of(row: Row, field_only: bool) -> list[str]:
    stored = row.fields.get("reasoning_content")
    if field_only and isinstance(stored, str):
        return [stored]
    found = list(_texts(stored))
    return found or [thought for text in _texts(row.result) if (thought := thought_in(text))]


def _wrong_items(path: Path) -> dict[str, set[str]]:
    wrong: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found = wrong.setdefault(row["category"], set())
        if not row["correct"]:
            found.add(row["id"])
    return wrong


def _is_of(path: Path, folder: Path, model_name: str | None) -> bool:
    """Whether a score file is of the model, where the folder holds several."""
    parts: Sequence[str] = path.relative_to(folder).parts[:-1]
    models = [part for part in folder.iterdir() if part.is_dir()] if parts else []
    return model_name is None or len(models) <= 1 or model_name.replace("/", "_") in parts


def _texts(value: Any) -> Iterator[str]:
    """Texts that are not blank, at any depth of turns and steps."""
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
