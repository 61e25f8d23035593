"""A conversation as text, by the tokenizer's own chat template: the one place where a template is run."""

from collections.abc import Mapping, Sequence
from typing import Any

from dcore_jax.data.files import Malformed
from dcore_jax.errors import first_line

_SHOWN = 100  # characters of what a template complains about


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation; it holds its own special tokens, so encode it with `add_special_tokens=False`.

    Args:
      tokenizer: a transformers tokenizer with a chat template.
      messages: OpenAI-style, `arguments` of tool calls as dicts.
      tools: OpenAI function schemas; an empty list is none, as some templates write a heading over it.
      add_generation_prompt: whether to open the assistant's turn.

    Raises:
      Malformed: the template failed, in one line: `chat template failed: roles must alternate`.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        raise Malformed(f"chat template failed: {first_line(error)[:_SHOWN]}") from None
    return str(text)
