"""Stored answers of a model, in the forms in which people keep them: JSON lines, a list, or a mapping by id."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.data.files import file_rows
from dcore_jax.data.malformed import Malformed
from dcore_jax.errors import UserError

# Fields of a row that may name its question, and those that may hold its answer, in the order in which they are looked for.
ID_FIELDS = ("id", "index", "idx", "question_id", "task_id")
ANSWER_FIELDS = (
    "prediction",
    "pred",
    "predicted",
    "predictions",
    "output",
    "response",
    "result",
    "completion",
    "generated_text",
    "model_output",
    "answer",
    "calls",
    "tool_calls",
    "messages",
    "content",
    "text",
)


@dataclass(frozen=True)
class Predictions:
    """Answers by question, and what is wrong with the file.

    Args:
      answers: the stored value (text, calls or whatever the benchmark reads) by the question's id.
      problems: why a question has no answer that counts, by its id.
      left_out: a line for each damaged or foreign row: file, line number, what is wrong.
    """

    answers: Mapping[str, Any]
    problems: Mapping[str, str]
    left_out: tuple[str, ...]

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Questions that no row answers."""
        return [name for name in ids if name not in self.answers and name not in self.problems]


def read_predictions(
    path: str | Path, ids: Sequence[str], aliases: Mapping[str, str] | None = None
) -> Predictions:
    """Reads a file of answers to the questions `ids`.

    A row is `{"id": ..., "prediction": ...}` (other names: `ID_FIELDS`, `ANSWER_FIELDS`), or the answer alone, which then answers
    the question at the row's place. A file that is one JSON object maps ids to answers. Where a question has two rows, a
    repetition is reported and counts once; two different answers count as no answer.

    Args:
      ids: of all questions, in their order; a number is a place, counted from 0 (from 1 where the rows run from 1 to N).
      aliases: further names of questions.

    Raises:
      UserError: no such file, or one that cannot be read as a whole.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path given as predictions")
    reader = _Reader(ids, aliases or {})
    rows = list(_rows(path, reader))
    reader.count_from = _first_place([row for *_, row in rows], len(ids))
    for origin, place, row in rows:
        reader.add(origin, place, row)
    return Predictions(reader.answers, reader.problems, tuple(reader.left_out))


def _rows(path: Path, reader: "_Reader") -> Iterator[tuple[str, int, Any]]:
    """(origin, place, row) of every row; a file that is one mapping or one list is taken apart."""
    if path.suffix == ".txt":  # an answer on each line, as text
        rows: list[tuple[str, Any]] = [
            (f"{path.name}:{number}", line)
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        ]
    else:
        rows = list(file_rows(path.name, path))
    if len(rows) == 1:
        origin, whole = rows[0]
        if isinstance(whole, list) and reader.questions > 1:
            rows = [(f"{path.name}:row {i + 1}", row) for i, row in enumerate(whole)]
        elif isinstance(whole, dict) and (listed := _only_list(whole, reader.questions)) is not None:
            rows = [(f"{path.name}:row {i + 1}", row) for i, row in enumerate(listed)]
        elif isinstance(whole, dict) and whole and all(reader.known(key) for key in whole):
            rows = [(f"{path.name}:{key}", {"id": key, "prediction": row}) for key, row in whole.items()]
    for place, (origin, row) in enumerate(rows):
        yield origin, place, row


def _only_list(whole: dict[str, Any], questions: int) -> list[Any] | None:
    """The list of answers of a file such as `{"model": ..., "predictions": [...]}`."""
    lists = [value for value in whole.values() if isinstance(value, list) and len(value) == questions > 1]
    return lists[0] if len(lists) == 1 else None


class _Reader:
    """The rows of a file so far."""

    def __init__(self, ids: Sequence[str], aliases: Mapping[str, str]):
        self._ids, self._names = list(ids), {**aliases, **{name: name for name in ids}}
        self.answers: dict[str, Any] = {}
        self.problems: dict[str, str] = {}
        self.left_out: list[str] = []
        self._origins: dict[str, str] = {}
        self.count_from = 0  # what the file calls the first question, where it numbers them

    @property
    def questions(self) -> int:
        return len(self._ids)

    def known(self, key: Any) -> bool:
        return self._question(key) is not None

    def add(self, origin: str, place: int, row: Any) -> None:
        if isinstance(row, Malformed):
            self.left_out.append(f"{origin}: {row}")
            return
        named, answer = _taken_apart(row)
        shifted = str(int(named) - 1) if self.count_from and _is_number(named) else named
        question = self._question(place if named is None else shifted)
        if question is None:
            what = (
                f"no question {named!r:.60}" if named is not None else f"row {place + 1} of {len(self._ids)}"
            )
            self.left_out.append(f"{origin}: {what}")
        elif isinstance(answer, Malformed):
            self.left_out.append(f"{origin}: {answer}")
            self.problems.setdefault(question, str(answer))
        elif question not in self._origins:
            self.answers[question], self._origins[question] = answer, origin
        else:
            first = self._origins[question]
            same = question in self.answers and self.answers[question] == answer
            verdict = "the same answer, counted once" if same else "another answer: neither counts"
            self.left_out.append(f"{origin}: question {question!r} was answered at {first}; {verdict}")
            if not same:
                self.answers.pop(question, None)
                self.problems[question] = f"two different answers ({first}, {origin})"

    def _question(self, key: Any) -> str | None:
        """The id of a question by its id, another of its names, or its place."""
        if isinstance(key, bool) or not isinstance(key, str | int):
            return None
        if str(key) in self._names:
            return self._names[str(key)]
        return self._ids[int(key)] if _is_number(key) and int(key) < len(self._ids) else None


def _first_place(rows: Sequence[Any], questions: int) -> int:
    """1 where the rows number the questions 1 to N: N is there and 0 is not; else 0."""
    numbers = {int(named) for row in rows if _is_number(named := _taken_apart(row)[0])}
    return int(questions in numbers and 0 not in numbers)


def _is_number(key: Any) -> bool:
    if isinstance(key, bool) or not isinstance(key, str | int):
        return False
    text = str(key).strip()
    return text.isascii() and text.isdigit()


def _taken_apart(row: Any) -> tuple[Any, Any]:
    """(the id a row names or None, its answer)."""
    if not isinstance(row, dict):
        return None, row
    named = next((row[field] for field in ID_FIELDS if field in row), None)
    if _is_call(row):
        return named, row
    field = next((field for field in ANSWER_FIELDS if field in row), None)
    if field is None:
        return named, Malformed(f"no answer: none of the fields {', '.join(ANSWER_FIELDS[:5])}, ...")
    return named, row[field]


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value and ("parameters" in value or "arguments" in value)
