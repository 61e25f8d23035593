"""The tokenizer of a model folder, which must be able to render chats."""

from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError, first_line


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
