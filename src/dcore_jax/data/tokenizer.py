"""The tokenizer of a model folder, which must be able to render chats, and ids of many texts in little memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from dcore_jax.errors import UserError, first_line

_BATCH = 65_536  # characters a call: enough to keep the tokenizer's threads busy
_SURELY_LONGER = 8  # characters for each token that fits: of a longer text the beginning is looked at first
_CUT = 64  # ids at the end of a text that is cut off


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a Hugging Face folder.

    Raises:
      UserError: no tokenizer, one without a vocabulary (transformers makes one where the files are missing), or one without a
        chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a broken tokenizer.json raises whatever its reader does
        raise UserError(f"{folder}: no tokenizer could be read ({first_line(error)})") from None
    if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):
        raise UserError(f"{folder}: the tokenizer has no vocabulary; put the model's tokenizer.json there")
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{folder}: the tokenizer has no chat template; add a chat_template.jinja beside its tokenizer.json"
        )
    return tokenizer


def tokenise(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Int32[np.ndarray, "_"]]:
    """The ids of texts that hold their special tokens already; of one of far more than `limit` tokens, more than `limit` of them.

    The tokenizer keeps far more of a text than its ids, so it is given little at a time.
    """
    found: list[np.ndarray] = []
    batch: list[str] = []
    for text in texts:
        if len(text) > _SURELY_LONGER * limit:
            found += _ids(tokenizer, batch)
            batch = []
            beginning = _ids(tokenizer, [text[: _SURELY_LONGER * limit]])
            # The last ids of a text that is cut off may be others than in the whole.
            found += beginning if len(beginning[0]) > limit + _CUT else _ids(tokenizer, [text])
            continue
        if batch and sum(map(len, batch)) + len(text) > _BATCH:
            found += _ids(tokenizer, batch)
            batch = []
        batch.append(text)
    return found + _ids(tokenizer, batch)


def _ids(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]
