"""End tokens: what ends a turn of a model, the same union in training, sampling, evaluation and export.

A model folder says it in three places, and they differ: a base model's tokenizer ends documents (`<|endoftext|>`) where its chat
template ends turns (`<|im_end|>`), and generation_config.json may list more (Llama 3.1: `<|eom_id|>`, which ends its tool calls).
"""

import json
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError, first_line
from dcore_jax.progress import log

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
GENERATION_CONFIG = "generation_config.json"


def end_of_turn_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that end an assistant turn: the tokenizer's eos, and the token with which its template closes a turn.

    They differ for base models (eos `<|endoftext|>`, template `<|im_end|>`), so the template's is found by rendering a
    probe turn: its last special token.

    Raises:
      UserError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise UserError(
            f"tokenizer {name} has no chat template; add a chat_template.jinja beside its tokenizer.json"
        )
    end_ids = {tokenizer.eos_token_id} - {None}
    turn = _probe_turn(tokenizer)
    if turn:
        special = set(tokenizer.all_special_ids)
        special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        closing = [i for i in tokenizer(turn, add_special_tokens=False)["input_ids"] if i in special]
        end_ids |= set(closing[-1:])
    return frozenset(end_ids)


def stop_token_ids(folder: Path | None, tokenizer: Any) -> frozenset[int]:
    """The ids at which generation stops: those that end a turn in training, and those that the model's folder lists.

    Args:
      folder: of the model, whose generation_config.json is read (config.json where that names no end); None: no folder.
      tokenizer: the model's, with a chat template.

    Raises:
      UserError: no chat template; an `eos_token_id` that is no token id.
    """
    return end_of_turn_ids(tokenizer) | (_listed_ids(folder) if folder is not None else frozenset())


def write_stop_tokens(folder: Path) -> None:
    """Makes an exported folder stop where its model was taught to: the union, as generation_config.json's `eos_token_id`.

    A folder without a tokenizer, or whose tokenizer has no chat template, keeps what it lists. Says so where the tokenizer's own
    eos is not all of it, since a program that asks the tokenizer alone would run on.
    """
    tokenizer = _tokenizer_of(folder)
    if tokenizer is None:
        return
    listed, taught = _listed_ids(folder), end_of_turn_ids(tokenizer)
    union = sorted(listed | taught)
    if not union:
        return
    path = folder / GENERATION_CONFIG
    fields = _fields(path) if path.exists() else _defaults(folder)
    if frozenset(union) != _ids_of(fields.get("eos_token_id"), path):
        fields["eos_token_id"] = union if len(union) > 1 else union[0]
        path.write_text(json.dumps(fields, indent=2) + "\n")
    if not taught <= {tokenizer.eos_token_id}:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(union)))
        log(
            f"end tokens {names} are in {GENERATION_CONFIG}, which transformers and vLLM read; the tokenizer's own eos is "
            f"{tokenizer.eos_token} alone"
        )


def _probe_turn(tokenizer: Any) -> str:
    """The text that the chat template writes for an assistant's turn of one letter; empty where it fails on it."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        prompt = tokenizer.apply_chat_template(probe[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:  # a template is a program of the model's author: it may raise anything
        return ""
    return whole[len(prompt) :] if whole.startswith(prompt) else ""


def _tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer; None where it has none that renders chats."""
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a broken tokenizer.json raises whatever its reader does
        log(
            f"end tokens stay as the source lists them: its tokenizer could not be read ({first_line(error)})"
        )
        return None
    return tokenizer if getattr(tokenizer, "chat_template", None) else None


def _listed_ids(folder: Path) -> frozenset[int]:
    """`eos_token_id` of generation_config.json; of config.json where that is missing or names none, as transformers does."""
    for path in (folder / GENERATION_CONFIG, folder / "config.json"):
        found = _ids_of(_fields(path).get("eos_token_id"), path) if path.exists() else None
        if found:
            return found
    return frozenset()


def _ids_of(value: Any, path: Path) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(i) is not int or i < 0 for i in ids):
        raise UserError(f"{path}: eos_token_id is {value!r}; write a token id, or a list of them")
    return frozenset(ids)


def _defaults(folder: Path) -> dict[str, Any]:
    """The ids that transformers would read from config.json in place of a generation_config.json."""
    path = folder / "config.json"
    fields = _fields(path) if path.exists() else {}
    return {name: fields[name] for name in ("bos_token_id", "pad_token_id") if fields.get(name) is not None}


def _fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({first_line(error)})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: should hold a JSON object, not {type(fields).__name__}")
    return fields
