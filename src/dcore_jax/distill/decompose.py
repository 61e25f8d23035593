"""Decompose and count check (D-CORE section 3.1): from a query and its reference calls, backwards, to subtasks.

The answer is read strictly: a JSON list of `{"step": 1, "description": "...", "index": [0]}`, after a thought or alone.
Fences around it are taken off, nothing else is mended.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dcore_jax.calls import Call, render_calls, split_thought
from dcore_jax.distill.ask import Answer, Ask, Rejected, flaw_of, require_ended
from dcore_jax.distill.conversation import as_text
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.templates import Templates

MAX_DESCRIPTION = 2_000  # characters
_FENCE = "```"
_WORD = re.compile(r"\w+")
_THOUSANDS = re.compile(r"(?<=\d)[,'’_\u00a0\u202f](?=\d{3}(?!\d))")


def decompose_ask(
    sample: SeedSample,
    reference: Sequence[Call] | None,
    templates: Templates,
    *,
    examples: int,
    plain: bool,
    attempt: int,
) -> Ask:
    """The question for the subtasks.

    Args:
      reference: Y*, or labels in its place; None: the model is not shown any.
      examples: worked examples at most; the agent family (a history, or a chain) has three, the single-turn family one.
      plain: without the chat template.
    """
    family = "agent" if sample.history or sample.kind == "sequential" else "single"
    history = [as_text(message, "python") for message in sample.history]
    text = templates.render(
        "decompose",
        query=sample.query,
        calls=None if reference is None else [render_calls([call], "python")[1:-1] for call in reference],
        policy=sample.policy,
        tools=sample.tools,
        history=history,
        examples=templates.examples(family, examples),
    )
    message = {"role": "user", "content": text}
    tools = sample.tools if templates.asks_with_tools and not plain else ()
    return Ask("decompose", (message,), tools, attempt=attempt, plain=plain)


def read_subtasks(answer: Answer, *, needs_index: bool, calls: int | None = None) -> tuple[str, ...]:
    """The descriptions of the subtasks, in order. Raises Rejected with stage `decompose`.

    Args:
      needs_index: whether each subtask must name the reference calls that it covers.
      calls: how many of them were shown; None: what an index names is not checked.
    """
    require_ended("decompose", answer)
    _, text, closed = split_thought(answer.text)
    if not closed:
        raise Rejected("decompose", "a thought that is not closed", answer.text)
    text = text.strip()
    if not text:
        raise Rejected("decompose", "empty", answer.text)
    try:
        steps = json.loads(_unfenced(text))
    except (ValueError, RecursionError):
        raise Rejected("decompose", "not JSON", answer.text) from None
    if not isinstance(steps, list) or not steps:
        raise Rejected("decompose", "not a JSON list of subtasks", answer.text)
    # A list with too many subtasks numbers calls to match: it is for the count check to say so.
    indices = None if calls is None else max(calls, len(steps))
    for number, step in enumerate(steps, start=1):
        if problem := _problem(step, number, needs_index, indices):
            raise Rejected("decompose", problem, answer.text)
    return tuple(" ".join(step["description"].split()) for step in steps)


def check_count(subtasks: Sequence[str], expected: int, answer: Answer) -> None:
    """|S| must be the number of reference calls. Raises Rejected with stage `count`."""
    if len(subtasks) != expected:
        which = "fewer" if len(subtasks) < expected else "more"
        raise Rejected("count", f"{which} subtasks than reference calls", answer.text)


def check_leaks(
    subtasks: Sequence[str], sample: SeedSample, reference: Sequence[Call], answer: Answer
) -> None:
    """No description may hold a value that only the reference knows. Raises Rejected with stage `decompose`.

    Values are texts of three characters or more, a letter with a digit (`k4`), and numbers of three digits or more, found
    as whole words; shorter ones stand in a sentence by chance. Known is all that the prompt shows besides the reference:
    request, policy, tools, and the history with its calls. `5,000,000` and `5000000` are one number.
    """
    shown = [sample.query, sample.policy, json.dumps(sample.tools, ensure_ascii=False)]
    known = _words(" ".join([*shown, *(_shown(message) for message in sample.history)]))
    said = _words(" ".join(subtasks))
    for call in reference:
        for value in _scalars(call.arguments):
            spellings = _spellings(value) if _tells(value) else ()
            if any(words in said for words in spellings) and not any(words in known for words in spellings):
                raise Rejected("decompose", "a description leaks a value of the reference", answer.text)


def _unfenced(text: str) -> str:
    if len(text) < 2 * len(_FENCE) or not (text.startswith(_FENCE) and text.endswith(_FENCE)):
        return text
    return text[len(_FENCE) : -len(_FENCE)].removeprefix("json").strip()


def _problem(step: Any, number: int, needs_index: bool, indices: int | None) -> str:
    if not isinstance(step, dict):
        return "a subtask that is not an object"
    if type(step.get("step")) is not int or step["step"] != number:
        return "steps that are not numbered 1, 2, 3"
    description = step.get("description")
    if not isinstance(description, str) or not description.strip():
        return "a subtask without a description"
    if len(description) > MAX_DESCRIPTION:
        return f"a description of over {MAX_DESCRIPTION} characters"
    if flaw := flaw_of(description):
        return f"a description with {flaw}"
    index = step.get("index", None if needs_index else [])
    if not isinstance(index, list) or any(type(item) is not int or item < 0 for item in index):
        return "a subtask whose index is not a list of numbers"
    if indices is not None and any(item >= indices for item in index):
        return "a subtask whose index names no call"
    return ""


def _scalars(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _scalars(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _scalars(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _tells(value: str) -> bool:
    """Whether a value is long or odd enough not to stand in a sentence by chance."""
    return len(value) >= 3 or (len(value) == 2 and value[0].isalpha() and value[1].isdigit())


def _shown(message: Mapping[str, Any]) -> str:
    """A message of the history as the prompt shows it: with its calls, and with the words beside them."""
    return f"{message.get('content')} {as_text(dict(message), 'python')['content']}"


def _words(text: str) -> str:
    """All words of a text, and again with the separators of thousands taken out, each between two spaces."""
    return " ".join(_spellings(text))


def _spellings(text: str) -> tuple[str, ...]:
    """The words of a text between single spaces, as it is and without separators of thousands; none where it has none."""
    written = (
        " ".join(_WORD.findall(text.lower())),
        " ".join(_WORD.findall(_THOUSANDS.sub("", text.lower()))),
    )
    return tuple(f" {words} " for words in dict.fromkeys(written) if words)
