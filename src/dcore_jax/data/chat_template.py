"""A conversation as text, by the tokenizer's own chat template: the one place where a template is run.

The template is compiled by transformers and given what `apply_chat_template` gives it, with two differences. A field of a
message that is null reaches it as null (transformers 5 leaves such fields out), so that a template tells null, absent and empty
apart as it does in other programs; one that cannot take null, because it fails or writes "None", is given an empty text. And a
template that writes the date is given one that does not change while a run lives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import yaml

from dcore_jax.data.files import Malformed
from dcore_jax.errors import UserError, first_line

_SHOWN = 100  # characters of what a template complains about
# What a template is given of a conversation: no option of the user's.
_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "strftime_now"})


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with what a run decides about it; `chat_template` makes one from a config's options."""

    tokenizer: Any
    options: Mapping[str, Any] = field(default_factory=dict)  # variables of the template, as enable_thinking
    began: datetime | None = None  # what `strftime_now` writes; None: the clock

    def variables(self) -> frozenset[str]:
        """The names that the template (each, where a tokenizer has several) reads from outside."""
        templates = self.tokenizer.chat_template
        texts = templates.values() if isinstance(templates, dict) else [templates]
        return frozenset().union(*map(_variables, texts))


def chat_template(tokenizer: Any, options: Sequence[str] = (), began: datetime | None = None) -> ChatTemplate:
    """The template of a run.

    Args:
      options: of the config, `key=value` each, with the value as YAML reads it: `enable_thinking=false`.
      began: the date and time that a template may write, the same for as long as the run lives.

    Raises:
      UserError: an option that is not `key=value`, that is given twice, or that the template never reads.
    """
    values = parse_options(options)
    template = ChatTemplate(tokenizer, values, began)
    known = (template.variables() | set(tokenizer.special_tokens_map)) - _GIVEN if values else frozenset()
    for name in values:
        if name not in known:
            listed = ", ".join(sorted(template.variables() - _GIVEN)) or "none"
            path = getattr(tokenizer, "name_or_path", "")
            which = f"the chat template of {path}" if path else "the chat template"
            raise UserError(f"chat_template_kwargs: {which} has no variable {name}; it reads {listed}")
    return template


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """`chat_template_kwargs` of a config as a dict; raises UserError for what is not `key=value`, or given twice."""
    values: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise UserError(f"chat_template_kwargs: {option!r} should be key=value, as enable_thinking=false")
        if name in values:
            raise UserError(f"chat_template_kwargs: {name} is given twice; keep one")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(
                f"chat_template_kwargs: {option!r} is not readable ({first_line(error)})"
            ) from None
    return values


def as_chat_template(tokenizer: Any) -> ChatTemplate:
    """A ChatTemplate as it is; a bare tokenizer with no options and the clock's date."""
    return tokenizer if isinstance(tokenizer, ChatTemplate) else ChatTemplate(tokenizer)


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation; it holds its own special tokens, so encode it with `add_special_tokens=False`.

    Args:
      tokenizer: a `ChatTemplate`, or a transformers tokenizer with a chat template.
      messages: OpenAI-style, `arguments` of tool calls as dicts; fields that are null, empty or absent reach the template so.
      tools: OpenAI function schemas; None is "no tools", and an empty list an empty list.
      add_generation_prompt: whether to open the assistant's turn.

    Raises:
      Malformed: the template failed, in one line: `chat template failed: roles must alternate`.
    """
    template = as_chat_template(tokenizer)
    given = [_with_thinking(message) for message in messages]
    without_nulls = [_without_nulls(message) for message in given]
    try:
        text = _render(template, given, tools, add_generation_prompt)
        if given != without_nulls and "None" in text:
            empty = _render(template, without_nulls, tools, add_generation_prompt)
            text = empty if _only_none_more(text, empty) else text
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        if given != without_nulls:
            try:
                return _render(template, without_nulls, tools, add_generation_prompt)
            except Exception:
                pass  # what it says of the conversation as it is tells more
        raise Malformed(f"chat template failed: {first_line(error)[:_SHOWN]}") from None
    return text


def _render(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool
) -> str:
    tokenizer, began = template.tokenizer, template.began
    tools = None if tools is None else list(tools)
    text = tokenizer.get_chat_template(None, tools)
    dates: dict[str, Any] = {}
    if began is not None:
        dates["strftime_now"] = began.strftime
        if _reads_date_string(text):
            dates["date_string"] = began.strftime("%d %b %Y")
    rendered = _compiled(text).render(
        messages=messages,
        tools=tools,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **{**tokenizer.special_tokens_map, **dates, **template.options},
    )
    return str(rendered)


def _with_thinking(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its thought under gpt-oss's name too, as transformers has it."""
    thought = message.get("reasoning_content")
    return dict(message) if thought is None else {"thinking": thought, **message}


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as a template wants it that knows no null: fields absent, content empty."""
    kept = {key: value for key, value in message.items() if value is not None}
    return {**kept, "content": kept.get("content", "")}


def _only_none_more(text: str, empty: str) -> bool:
    """Whether `text` is `empty` with the word None written in places."""
    at = 0
    while text != empty:
        at = next((i for i in range(at, len(empty)) if text[i : i + 1] != empty[i]), len(empty))
        # Where what follows begins as None does ("None" + "Now"), the word may begin a few letters earlier.
        start = next((i for i in range(at, max(at - 4, -1), -1) if text[i : i + 4] == "None"), None)
        if start is None or text[:start] != empty[:start]:
            return False
        text = text[:start] + text[start + 4 :]
        at = start
    return True


def _compiled(text: str) -> Any:
    """The template as transformers compiles it, in its sandbox and with its filters; it keeps the last ones that it compiled."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(text)


@lru_cache
def _variables(text: str) -> frozenset[str]:
    from jinja2 import meta

    return frozenset(meta.find_undeclared_variables(_compiled(text).environment.parse(text)))


@lru_cache
def _reads_date_string(text: str) -> bool:
    """Whether a template writes a `date_string` without a value of its own for it, which it would keep as in serving."""
    from jinja2 import nodes

    if "date_string" not in _variables(text):
        return False
    assigned = _compiled(text).environment.parse(text).find_all(nodes.Assign)
    return not any(
        isinstance(node.target, nodes.Name) and node.target.name == "date_string" for node in assigned
    )
