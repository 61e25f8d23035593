"""Data as a user names them, in every recipe: one grammar for files, folders and hub datasets, with a mix by weights.

    train.jsonl                              a file: .jsonl, .jsonl.gz, .json, .parquet
    data/                                    a folder: every such file in it, also in its subfolders, by name; a folder with a
                                             dataset card, or from `save_to_disk`, is read as a dataset
    hf://datasets/owner/name/file.jsonl      one file of a hub dataset, also owner/name@revision
    hf://owner/name   or   owner/name        a hub dataset; without hf:// where no such file or folder exists here

Options follow a colon, as name=value, joined by commas: `owner/name:split=train,weight=0.5,rows=2000`.

    split=train        of a dataset, several joined by +; default: the only one, or train
    config=name        of a dataset that has several
    revision=v2        branch, tag or commit on the hub
    rows=2000          stop after so many rows were read
    draw=2000          so many of the rows, chosen by the run's seed (or seed=7) and the source's name, in the file's order
    names=masked       names of tools and parameters replaced by random strings (name_masking.py)
    weight=0.5         how often each row is taken in a pass: 2 is twice; 0.5 a half of the rows that the run's seed and the
                       source's name choose, the same ones every time; 1.5 each once, and that half once more

A name that exists as it stands, colon and all, is that file.
"""

import hashlib
import heapq
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dcore_jax.data.files import EXTENSIONS, HUB, extension_of, file_rows, local_file, stem_of
from dcore_jax.data.hub_datasets import check_datasets_installed, dataset_rows, is_dataset_folder
from dcore_jax.data.malformed import Malformed
from dcore_jax.data.name_masking import mask_names
from dcore_jax.errors import UserError

Kind = Literal["file", "folder", "hub file", "hub dataset"]
MAX_WEIGHT = 1000
_ROWS = ("draw", "seed", "names")
_OPTIONS: dict[Kind, tuple[str, ...]] = {
    "file": ("weight", "rows", *_ROWS),
    "folder": ("split", "config", "weight", "rows", *_ROWS),
    "hub file": ("revision", "weight", "rows", *_ROWS),
    "hub dataset": ("split", "config", "revision", "weight", "rows", *_ROWS),
}
_FORMS = "a file, a folder, hf://datasets/<owner>/<name>/<file> or a hub dataset <owner>/<name>"
_SCHEME = "hf://"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[^/@:]+)?")
# Files that nobody means as a dataset's name.
_OTHER_FILES = (
    ".csv", ".tsv", ".txt", ".md", ".xlsx", ".arrow", ".feather", ".yaml", ".yml", ".zip", ".gz", ".zst", ".tar",
)  # fmt: skip
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}


@dataclass(frozen=True)
class DataSource:
    """One named source of rows; `str()` of it is a name that reads as the same source."""

    kind: Kind
    path: str  # of a file or folder; owner/name on the hub
    file: str = ""  # inside of a hub dataset
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    weight: float = 1.0
    rows: int | None = None
    draw: int | None = None
    seed: int | None = None  # of the draw; None: the run's
    names: str | None = None  # "masked"

    @property
    def name(self) -> str:
        """The name without options; origins of rows start with it."""
        if self.kind == "hub file":
            at = f"@{self.revision}" if self.revision and _fits_name(self.revision) else ""
            return f"{HUB}{self.path}{at}/{self.file}"
        return self.path

    def __str__(self) -> str:
        name = f"{_SCHEME}{self.path}" if self.kind == "hub dataset" else self.name
        options = {
            "split": self.split,
            "config": self.config,
            "revision": None if name != self.path and "@" in name else self.revision,
            "weight": None if self.weight == 1 else repr(float(self.weight)).removesuffix(".0"),
            "rows": self.rows,
            "draw": self.draw,
            "seed": self.seed,
            "names": self.names,
        }
        given = ",".join(f"{key}={value}" for key, value in options.items() if value is not None)
        return f"{name}:{given}" if given else name

    def copies(self, row: int, seed: int) -> int:
        """How often the row of this number is taken in a pass."""
        whole, part = divmod(self.weight, 1)
        if not part:
            return int(whole)
        # A larger weight takes the rows of a smaller one, and more.
        return int(whole) + (self.rank(row, seed) < part * 2**64)

    def rank(self, row: int, seed: int) -> int:
        """A number below 2^64 that seed, source and the row's number decide; a draw takes the rows that rank lowest."""
        rest = replace(self, weight=1.0, rows=None, draw=None, seed=None, names=None)
        digest = hashlib.blake2b(f"{seed} {rest} {row}".encode("utf-8", "surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest())


@dataclass
class SourceCount:
    """How many rows of a source were read, taken by its weight, and kept to train on."""

    name: str
    weight: float
    rows: int = 0
    taken: int = 0
    kept: int = 0
    masked: int = 0  # taken rows whose names were masked

    def __str__(self) -> str:
        masked = f", names masked in {self.masked:,}" if self.masked else ""
        taken = f" (weight {self.weight:g}: {self.taken:,} taken)" if self.weight != 1 else ""
        if not taken and self.taken != self.rows:
            taken = f" ({self.taken:,} taken)"
        return f"{self.name}: {self.rows:,} rows{taken}{masked}, {self.kept:,} kept"


class SourceRow(NamedTuple):
    """A row with its origin, the category of rows that state none, and the name of its source as the user gave it."""

    origin: str
    row: Any
    category: str
    source: str


def parse_source(text: str | Path) -> DataSource:
    """Reads the name of a data source; the grammar is this module's docstring.

    Raises:
      UserError: no such form, an option that is unknown or does not apply, a wrong value.
    """
    text = str(text)
    name, options = _split_options(text)
    source = _named(text, name)
    if not options:
        return source
    given: dict[str, Any] = {}
    taken = _OPTIONS[source.kind]
    for part in (part.strip() for part in options.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in taken or not equals:
            known = any(key in names for names in _OPTIONS.values()) and equals
            problem = f"{key} is no option of a {source.kind}" if known else f"unknown option {part!r}"
            raise UserError(f"{text}: {problem}; the options are {', '.join(taken)}, as name=value")
        if key in given or (key == "revision" and source.revision):
            raise UserError(f"{text}: {key} is given twice")
        given[key] = _value(text, key, value)
    if "draw" in given and "weight" in given:
        raise UserError(
            f"{text}: draw takes each chosen row once, so weight changes it to another number; give one of them"
        )
    if "seed" in given and "draw" not in given:
        raise UserError(f"{text}: seed is that of draw=; give both, or leave it out")
    return replace(source, **given)


def is_source(text: str) -> bool:
    """Whether a name has the form of a data source, right or wrong in its options."""
    name, _ = _split_options(text)
    return os.path.exists(name) or _has_form(name)


def read_sources(
    names: Iterable[str | Path] | str | Path, *, seed: int = 0, counts: dict[str, SourceCount] | None = None
) -> Iterator[SourceRow]:
    """Yields the rows of all sources in their order, each as often as its source's weight says; nothing is held.

    A row that is no record is yielded as a `Malformed`. Every name is read before the first row.

    Args:
      counts: is filled, by name, with what was read and taken.

    Raises:
      UserError: a name that cannot be read, a file or dataset that cannot be opened.
    """
    listed = [str(name) for name in ([names] if isinstance(names, str | Path) else names)]
    counts = {} if counts is None else counts
    sources = [(name, parse_source(name)) for name in listed]
    for name, source in sources:
        _check(name, source)
        counts.setdefault(name, SourceCount(name, source.weight))
    for name, source in sources:
        count = counts[name]
        for number, (origin, row, category) in _drawn(name, source, seed, count):
            copies = source.copies(number, seed)
            if source.names and copies:
                row = _masked(row, f"{seed} {source.name} {number}")
                count.masked += copies * (not isinstance(row, Malformed))
            for _ in range(copies):
                count.taken += 1
                yield SourceRow(origin, row, category, name)


def _drawn(
    name: str, source: DataSource, seed: int, count: SourceCount
) -> Iterator[tuple[int, tuple[str, Any, str]]]:
    """The rows of a source with their numbers; of a draw those that rank lowest, which are all that is held."""

    def counted() -> Iterator[tuple[int, tuple[str, Any, str]]]:
        for numbered in enumerate(islice(_rows(source), source.rows), start=1):
            count.rows += 1
            yield numbered

    if source.draw is None:
        yield from counted()
        return
    own = seed if source.seed is None else source.seed
    chosen = heapq.nsmallest(source.draw, counted(), key=lambda numbered: source.rank(numbered[0], own))
    if len(chosen) < source.draw:
        raise UserError(f"{name}: draw={source.draw} is more than the {len(chosen)} rows there are; lower it")
    yield from sorted(chosen, key=lambda numbered: numbered[0])


def _masked(row: Any, key: str) -> Any:
    try:
        return row if isinstance(row, Malformed) else mask_names(row, key)
    except Malformed as reason:
        return reason
    except RecursionError:
        return Malformed("nested too deep")


# --- rows ---


def _rows(source: DataSource) -> Iterator[tuple[str, Any, str]]:
    if source.kind == "folder" and not _as_dataset(source):
        for path in _files(source.path):
            for origin, row in file_rows(path, Path(path)):
                yield origin, row, stem_of(path)
    elif source.kind in ("file", "hub file"):
        local = local_file(source.name, source.revision)
        for origin, row in file_rows(source.name, local):
            yield origin, row, stem_of(local.name)
    else:
        category = Path(source.path).name
        chosen = {"config": source.config, "split": source.split, "revision": source.revision}
        for origin, row in dataset_rows(source.name, source.path, **chosen):
            yield origin, row, category


def _check(text: str, source: DataSource) -> None:
    """Raises UserError for what would stop a run only after the sources before this one were read."""
    if source.kind == "file":
        local_file(source.path)
    elif source.kind == "hub dataset" or (source.kind == "folder" and _as_dataset(source)):
        check_datasets_installed(text)
        if source.kind == "hub dataset" and os.path.isdir(source.path):
            raise UserError(
                f"{text}: the datasets package would read the folder {source.path} that is here; start in another folder"
            )
    elif source.kind == "folder":
        _files(source.path)


def _as_dataset(source: DataSource) -> bool:
    return bool(source.split or source.config) or is_dataset_folder(Path(source.path))


def _files(folder: str) -> list[str]:
    """The data files of a folder in the order of their names. Raises UserError without any, or of several splits."""
    found = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(path, name) for name in names if extension_of(name) and name[0] != "."]
    found.sort()
    if not found:
        raise UserError(f"{folder}: no data file in this folder; data files end in {', '.join(EXTENSIONS)}")
    splits: dict[str, str] = {}
    for file in found:
        words = re.split(r"[^a-z]+", os.path.relpath(file, folder).lower())
        split = next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
        if split:
            splits.setdefault(split, file)
    if len(splits) > 1:
        raise UserError(
            f"{folder}: holds several splits ({', '.join(splits.values())}); name the files, or give {folder}:split=train"
        )
    return found


# --- the grammar ---


def _split_options(text: str) -> tuple[str, str]:
    """`(name, options)`; a name that exists comes before every other reading."""
    if os.path.exists(text):
        return text, ""
    cuts = [match.start() for match in re.finditer(r":(?!//)", text)]
    for cut in reversed(cuts):
        if os.path.exists(text[:cut]):
            return text[:cut], text[cut + 1 :]
    for cut in cuts:
        if _has_form(text[:cut]):
            return text[:cut], text[cut + 1 :]
    return text, ""


def _has_form(name: str) -> bool:
    """Whether a name that need not exist can only be a source's, by its ending or its form."""
    if name.startswith(HUB):
        inside = name.removeprefix(HUB)
        return bool(_REPOSITORY.fullmatch(inside)) or extension_of(name) is not None
    if name.startswith(_SCHEME):
        return _REPOSITORY.fullmatch(name.removeprefix(_SCHEME)) is not None
    return extension_of(name) is not None or _is_repository(name)


def _is_repository(name: str) -> bool:
    return _REPOSITORY.fullmatch(name) is not None and not name.endswith(_OTHER_FILES)


def _named(text: str, name: str) -> DataSource:
    if os.path.isdir(name):
        return DataSource("folder", name)
    if os.path.exists(name) or (extension_of(name) and not name.startswith(_SCHEME)):
        return DataSource("file", name)
    if name.startswith(HUB):
        parts = name.removeprefix(HUB).split("/", 2)
        repository, file = "/".join(parts[:2]), parts[2] if len(parts) == 3 else ""
        if not _REPOSITORY.fullmatch(repository):
            raise UserError(
                f"{text}: a hub file is written {HUB}<owner>/<name>/<file>, a hub dataset <owner>/<name>"
            )
        return _on_hub("hub file" if file else "hub dataset", repository, file)
    if name.startswith(_SCHEME):
        if not _REPOSITORY.fullmatch(repository := name.removeprefix(_SCHEME)):
            raise UserError(
                f"{text}: a hub dataset is written {_SCHEME}<owner>/<name>, one of its files {HUB}<owner>/<name>/<file>"
            )
        return _on_hub("hub dataset", repository)
    if _is_repository(name):
        return _on_hub("hub dataset", name)
    if Path(name).suffix in _OTHER_FILES:
        return DataSource("file", name)
    raise UserError(
        f"{text}: no such file or folder; data are named as {_FORMS}, options after a colon (name:weight=2)"
    )


def _on_hub(kind: Kind, repository: str, file: str = "") -> DataSource:
    path, _, revision = repository.partition("@")
    return DataSource(kind, path, file, revision=revision or None)


def _fits_name(revision: str) -> bool:
    return re.fullmatch(r"[^/@:]+", revision) is not None


def _value(text: str, key: str, value: str) -> Any:
    if key in ("rows", "draw", "seed"):
        if not re.fullmatch(r"\d{1,12}", value) or (key != "seed" and not int(value)):
            least = "" if key == "seed" else " above 0"
            raise UserError(f"{text}: {key} must be a whole number{least}, not {value!r}")
        return int(value)
    if key == "names":
        if value != "masked":
            raise UserError(f"{text}: names can be masked and nothing else, not {value!r}")
        return value
    if key == "weight":
        number = re.fullmatch(r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?", value)
        if not number or not 0 < float(value) <= MAX_WEIGHT:
            raise UserError(f"{text}: weight must be a number above 0 and up to {MAX_WEIGHT}, not {value!r}")
        return float(value)
    if not value:
        raise UserError(f"{text}: {key} is empty")
    if key == "split" and not re.fullmatch(r"[\w.-]+(?:\+[\w.-]+)*", value):
        raise UserError(
            f"{text}: split is a name, or names joined by +, not {value!r}; rows=100 takes the first rows"
        )
    return value
