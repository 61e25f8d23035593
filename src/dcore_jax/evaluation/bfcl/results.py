"""Result files as the benchmark writes them, `BFCL_v3_<category>_result.json`: JSON lines; what is damaged is named by line."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError

_NAME = re.compile(r"BFCL_(v\d)_(\w+)_result\.json")
# A category's name in v3 and in v4, where they differ.
_V4_NAMES = {"simple": "simple_python", "java": "simple_java", "javascript": "simple_javascript"}
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class ResultFile:
    """A file of answers.

    Args:
      version: of the benchmark that wrote it, from its name.
    """

    path: Path
    version: str
    category: str


@dataclass(frozen=True)
class Row:
    """One stored answer.

    Args:
      line: in its file, from 1.
      result: text, a list of calls, or a list of turns of steps.
      fields: the line's other fields: reasoning, token counts.
    """

    line: int
    id: str
    result: Any
    fields: dict[str, Any]


def find_result_files(folder: str | Path, model_name: str | None = None) -> tuple[str, list[ResultFile]]:
    """The model's name and its result files: `folder` is the model's own, or holds a folder for each model.

    Raises:
      UserError: no such folder or no result file in it; several models and no name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with files such as BFCL_v3_live_simple_result.json")
    paths = sorted(path for path in folder.rglob("*.json") if _NAME.fullmatch(path.name))
    models = _models(folder, paths)
    chosen = _choose(folder, models, model_name)
    files = []
    for path in models[chosen]:
        match = _NAME.fullmatch(path.name)
        assert match is not None
        files.append(ResultFile(path, match[1], match[2]))
    return model_name or chosen, files


# Folders that v4 makes inside a model's own, and the one that holds all models.
_INSIDE = {
    "live",
    "non_live",
    "multi_turn",
    "agentic",
    "format_sensitivity",
    "memory",
    "kv",
    "vector",
    "rec_sum",
    "web_search",
}
_INSIDE |= {"result", "results"}


def _models(folder: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        inside = [part for part in path.relative_to(folder).parts[:-1] if part not in _INSIDE]
        found.setdefault(inside[0] if inside else "", []).append(path)
    if "" in found:  # files of its own: the folder is the model's
        at = folder.resolve()
        name = at.parent.name if at.name in _INSIDE else at.name
        found = {name: found[""]}
    return found


def _choose(folder: Path, models: dict[str, list[Path]], name: str | None) -> str:
    if not models:
        raise UserError(f"{folder} holds no result file such as BFCL_v3_live_simple_result.json")
    if name is not None:
        for spelled in (name, name.replace("/", "_")):
            if spelled in models:
                return spelled
    if len(models) == 1:
        return next(iter(models))
    if name is not None:
        raise UserError(f"{folder} holds no results of {name!r}; it has {', '.join(sorted(models))}")
    raise UserError(
        f"{folder} holds several models; choose one with --model-name: {', '.join(sorted(models))}"
    )


def read_rows(path: str | Path) -> tuple[list[Row], list[str]]:
    """The answers of a file, and a line for each thing in it that is damaged: `file:line: what is wrong`."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror}"]
    lines, notes = _lines(path, data)
    rows = []
    for number, line in lines:
        row = _row(number, line)
        if isinstance(row, Row):
            rows.append(row)
        else:
            notes.append(f"{path}:{number}: {row}")
    if not rows and not notes:
        notes.append(f"{path}: is empty")
    return rows, notes


def _lines(path: Path, data: bytes) -> tuple[list[tuple[int, bytes]], list[str]]:
    """Lines that are not blank, as UTF-8."""
    notes = []
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            notes.append(f"{path}:1: written as {encoding.upper()}, not as UTF-8; read as that")
            data = data.decode(encoding, errors="replace").encode("utf-8", errors="replace")
    if data.startswith(codecs.BOM_UTF8):
        notes.append(f"{path}:1: begins with a byte order mark; read without it")
        data = data[len(codecs.BOM_UTF8) :]
    numbered = enumerate(data.split(b"\n"), 1)
    return [(number, line) for number, line in numbered if line.strip()], notes


def _row(number: int, line: bytes) -> Row | str:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"is not UTF-8: byte {error.start} is 0x{line[error.start]:02x}"
    except (ValueError, RecursionError) as error:
        return f"is no whole JSON object: {error}"
    if not isinstance(value, dict):
        return f"is no JSON object but {type(value).__name__}"
    if not isinstance(value.get("id"), str):
        return "has no id"
    if "result" not in value:
        return f"{value['id']} has no result"
    if not isinstance(value["result"], str | list):
        return f"{value['id']}: result is neither text nor a list but {type(value['result']).__name__}"
    return Row(number, value.pop("id"), value.pop("result"), value)


def category_for(version: str, category: str) -> str:
    """A category's name in another version of the benchmark: v3's `java` is v4's `simple_java`."""
    names = _V4_NAMES if version == "v4" else {new: old for old, new in _V4_NAMES.items()}
    return names.get(category, category)


@dataclass(frozen=True)
class Matched:
    """Answers beside their questions.

    Args:
      answers: index of the question, and its answer, in the benchmark's order.
      notes: what was not matched, with file and line.
      by_index: ids of answers that are spelled otherwise than their question's, and that question's.
    """

    answers: list[tuple[int, Row]]
    notes: list[str]
    by_index: list[tuple[str, str]]


def match_rows(path: Path, rows: Sequence[Row], ids: Sequence[str], category: str) -> Matched:
    """Pairs answers with questions by id; an id that no question has, by the index that it holds.

    An id may be listed twice: its answers are taken in their order. One more is a duplicate, of which the first is kept.
    """
    places: dict[str, list[int]] = {}
    for index, one in enumerate(ids):
        places.setdefault(one, []).append(index)
    by_number = {_number(one): index for index, one in enumerate(ids)}
    seen: Counter[str] = Counter()
    answers: dict[int, Row] = {}
    notes, renamed, strangers = [], [], []
    for row in rows:
        spelled = _spelled(row.id, category)
        if spelled not in places:
            strangers.append(row)
        elif seen[spelled] < len(places[spelled]):
            answers[places[spelled][seen[spelled]]] = row
            seen[spelled] += 1
        else:
            notes.append(f"{path}:{row.line}: {row.id} is answered again; the first answer is kept")
    for row in strangers:
        near = by_number.get(_number(_spelled(row.id, category)))
        if near is not None and near not in answers:
            answers[near] = row
            renamed.append((row.id, ids[near]))
        else:
            notes.append(f"{path}:{row.line}: {row.id} is no question of {category}")
    if missing := len(ids) - len(answers):
        first = next(ids[index] for index in range(len(ids)) if index not in answers)
        notes.append(
            f"{path}: {missing} of {len(ids)} questions have no answer and are not counted, the first is {first}"
        )
    return Matched(sorted(answers.items()), notes, renamed)


def _spelled(one: str, category: str) -> str:
    """An id with the name that its category has in the version that scores it."""
    name, _, number = one.rpartition("_")
    return (
        f"{category}_{number}"
        if name in {*_V4_NAMES, *_V4_NAMES.values()} and category_is(name, category)
        else one
    )


def category_is(name: str, category: str) -> bool:
    """Whether two names are those of one category in v3 and v4."""
    return _V4_NAMES.get(name, name) == _V4_NAMES.get(category, category)


def _number(one: str) -> tuple[str, str]:
    """Category and leading number of an id: `live_multiple_1052-79-0` is number 1052 of live_multiple."""
    name, _, number = one.split(":")[0].rpartition("_")
    return name, number.split("-")[0]
