"""Atomic files and folders: written beside their place and moved into it when whole, so that a kill leaves none half-written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file name in the same folder; what was written there replaces `path` at the end.

    An exception inside the block removes the temporary file and leaves `path` as it was.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replaces a file's text (UTF-8) as a whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Makes and yields a temporary folder beside `path`, which becomes `path` at the end; `path` must not exist by then.

    An exception inside the block removes the temporary folder. An empty folder at `path` is replaced.
    """
    path = Path(path)
    temporary = _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial-{os.getpid()}")
