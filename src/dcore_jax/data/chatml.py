"""The `release` mask: conversations in the ChatML and with the loss weights of the D-CORE release's SFT trainer.

Every message is `<|im_start|>role\\ncontent<|im_end|>\\n`, its parts tokenised separately. `<|im_start|>`, `<|im_end|>` and
the newline after it carry loss in every message, and so does the content of the last assistant turn. The content of
earlier assistant turns carries no loss but counts in the denominator (the release's weights stay 1 there while its
labels are masked).

A difference: position 0 of a sample carries no loss. In a packed row the release predicts the first token of the
second and later samples from the last newline of the sample before, although its attention separates the two.

Source: the release's `moi_trainer_qwen3.py`, mode `only_last_assistant`.
"""

import json
from collections.abc import Sequence, Sized
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from dcore_jax.calls import Call, render_calls
from dcore_jax.data.left_out import begins_in_thought
from dcore_jax.data.records import Message
from dcore_jax.errors import UserError

START, END = "<|im_start|>", "<|im_end|>"
# What a piece of text is to the masks: context (no loss), denominator (no loss, but counted), learned and delimiter (loss).
PieceKind = Literal["context", "denominator", "learned", "delimiter"]


class Pieces(NamedTuple):
    """Texts to be tokenised separately and joined, each with its kind."""

    texts: list[str]
    kinds: list[PieceKind]


def chatml_turn(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> Pieces:
    """The pieces of a conversation whose last message is the assistant turn to learn.

    The release's records are text only. Structured fields of ours are written as its corpora write them: tools as JSON
    lines in the system message, calls as a Python list, tool results as user turns.
    """
    texts: list[str] = []
    kinds: list[PieceKind] = []
    history = _tool_results_as_user_turns(_tools_in_system(messages[:-1], tools))
    for message in history:
        kind: PieceKind = "denominator" if message["role"] == "assistant" else "context"
        _add(texts, kinds, message["role"], _without_thinking(message), kind)
    _add(texts, kinds, "assistant", _with_thinking(messages[-1]), "learned")
    return Pieces(texts, kinds)


def chatml_masks(
    pieces: Sequence[Sized], kinds: Sequence[PieceKind]
) -> tuple[Bool[np.ndarray, "length"], Bool[np.ndarray, "length"]]:
    """The loss mask and the denominator mask of the joined ids; False at position 0, which nothing predicts."""
    lengths = [len(piece) for piece in pieces]
    loss = np.repeat([kind in ("delimiter", "learned") for kind in kinds], lengths)
    denominator = np.repeat([kind in ("delimiter", "learned", "denominator") for kind in kinds], lengths)
    loss[:1] = denominator[:1] = False
    return loss, denominator


def chatml_end_ids(tokenizer: Any) -> frozenset[int]:
    """The id of `<|im_end|>`.

    Raises:
      UserError: the tokenizer has no ChatML tokens.
    """
    for token in (START, END):
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if tokenizer.convert_ids_to_tokens(ids) != [token]:
            raise UserError(
                f"mask=release builds ChatML by hand, and this tokenizer has no token {token}; use mask=last_turn"
            )
    return frozenset({tokenizer.convert_tokens_to_ids(END)})


def _add(texts: list[str], kinds: list[PieceKind], role: str, content: str, kind: PieceKind) -> None:
    texts += [START, role, "\n", content, END, "\n"]
    kinds += ["delimiter", "context", "context", kind, "delimiter", "delimiter"]


def _tools_in_system(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> list[Message]:
    kept = list(messages)
    if not tools:
        return kept
    block = "\n".join(["<tools>", *(json.dumps(tool, ensure_ascii=False) for tool in tools), "</tools>"])
    if kept and kept[0]["role"] == "system":
        return [{"role": "system", "content": f"{_text(kept[0])}\n\n{block}"}, *kept[1:]]
    return [{"role": "system", "content": block}, *kept]


def _tool_results_as_user_turns(messages: Sequence[Message]) -> list[Message]:
    """The messages with tool results as user turns, as in D-CORE's corpora: its trainer would put loss on a `tool` turn."""
    turns: list[Message] = []
    for i, message in enumerate(messages):
        if message["role"] != "tool":
            turns.append(message)
            continue
        result = f"<tool_response>\n{_text(message)}\n</tool_response>"
        if i and messages[i - 1]["role"] == "tool":
            turns[-1] = {"role": "user", "content": f"{turns[-1]['content']}\n{result}"}
        else:
            turns.append({"role": "user", "content": result})
    return turns


def _with_thinking(message: Message) -> str:
    thinking = message.get("reasoning_content")
    return f"<think>\n{thinking.strip()}\n</think>\n\n{_text(message)}" if thinking else _text(message)


def _without_thinking(message: Message) -> str:
    text = _text(message)
    if message["role"] != "assistant" or "</think>" not in text:
        return text
    if text.lstrip().startswith("<think>") or begins_in_thought(text):  # the template wrote its opening
        return text.split("</think>", 1)[1].lstrip("\n")
    return text


def _text(message: Message) -> str:
    calls = [Call(**call["function"]) for call in message.get("tool_calls") or ()]
    content: str = message.get("content") or ""
    if not calls:
        return content
    gap = "\n\n" if content.strip() else ""
    return content.rstrip("\n") + gap + render_calls(calls, "python")
