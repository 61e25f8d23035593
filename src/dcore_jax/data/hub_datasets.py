"""Datasets of the Hugging Face hub, and local dataset folders, row by row through the `datasets` library.

Nothing is downloaded whole: a split is streamed, and where it is left early (`rows=`) the rest is never fetched.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcore_jax.data.arrow import decided_nulls
from dcore_jax.errors import UserError, first_line

_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder says itself how it is read: a dataset card that lists its data, or what `save_to_disk` wrote."""
    if _is_saved(folder):
        return True
    card = folder / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    header = text[3:].partition("\n---")[0] if text.startswith("---") else ""
    return any(line.startswith(("configs:", "dataset_info:")) for line in header.splitlines())


def check_datasets_installed(name: str) -> None:
    """Raises UserError, which says what to install, where the `datasets` library is missing."""
    if find_spec("datasets") is None:
        raise UserError(
            f"{name}: hub datasets and dataset folders need the datasets package; pip install 'dcore-jax[hub]'"
        )


def dataset_rows(
    name: str,
    path: str,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yields (`name:split:row`, row) of a dataset, rows counted from 1 in each split; an ambiguous row as a `Malformed`.

    Args:
      name: how the dataset is named in origins and errors.
      path: `owner/name` on the hub, or a local folder.
      split: names joined by `+`; None: the only one, or `train`.

    Raises:
      UserError: no such dataset, config or split; a row that cannot be fetched.
    """
    check_datasets_installed(name)
    splits = _splits(name, path, config, revision)
    for chosen in _chosen(name, split, list(splits)):
        dataset = splits[chosen]
        features = getattr(dataset, "features", None) or {}
        stated = {column for column, feature in features.items() if _is_json(feature)}
        rows, number = iter(dataset), 0
        while True:
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                break
            except Exception as error:  # of any library between the hub and a row
                raise UserError(
                    f"{name}: cannot read row {number} of split {chosen}: {first_line(error)}"
                ) from error
            yield f"{name}:{chosen}:{number}", decided_nulls(row, stated)


def _splits(name: str, path: str, config: str | None, revision: str | None) -> dict[str, Any]:
    import datasets  # imported late: it takes seconds, and local files need none of it

    try:
        if os.path.isdir(path) and _is_saved(Path(path)):
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, config, revision=revision, streaming=True)
    except Exception as error:
        raise UserError(f"{name}: cannot open the dataset: {_why(path, config, revision, error)}") from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def _why(path: str, config: str | None, revision: str | None, error: Exception) -> str:
    """The reason in one line; the names of the configs where one has to be chosen, which the library says in its second."""
    import datasets

    if config is None and isinstance(error, ValueError):
        try:
            names = datasets.get_dataset_config_names(path, revision=revision)
        except Exception:
            names = []
        if len(names) > 1:
            return f"it has several configs; choose one of {', '.join(names)}, as config={names[0]}"
    return first_line(error)


def _chosen(name: str, split: str | None, splits: list[str]) -> list[str]:
    if split is None:
        if len(splits) == 1:
            return splits
        if "train" in splits:
            return ["train"]
        raise UserError(f"{name}: no split train; choose one of {', '.join(splits)}, as split={splits[0]}")
    chosen = split.split("+")
    for one in chosen:
        if one not in splits:
            raise UserError(f"{name}: no split {one}; its splits are {', '.join(splits)}")
    return chosen


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _is_json(feature: Any) -> bool:
    """Whether a column is of JSON values, alone or in a list: its nulls are the writer's own."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return type(feature).__name__ == "Json"
