"""Decompose and count check (D-CORE section 3.1): a query is split into subtasks, given the reference calls that serve it.

The answer is parsed strictly: a JSON list of `{"step": 1, "description": "...", "index": [0]}`, after a thought or alone.
A code fence around the list is removed, nothing else is repaired.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dcore_jax.calls import Call, render_calls, split_thought
from dcore_jax.distill.ask import Answer, Ask, Rejected, find_flaw, require_ended
from dcore_jax.distill.conversation import inline_calls
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
    """The question that asks for the subtasks.

    Args:
      reference: Y*, or pseudo-labels in its place; None: no calls are shown.
      examples: most worked examples; the agent family (a history, or a chain) has three, the single-turn family one.
      plain: without the chat template.
    """
    family = "agent" if sample.history or sample.kind in ("sequential", "mixed") else "single"
    history = [inline_calls(message, "python") for message in sample.history]
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
    """The descriptions of the subtasks, in order.

    Args:
      needs_index: whether each subtask must name the reference calls that it covers.
      calls: how many of them were shown; None: indices are not checked.

    Raises:
      Rejected: an answer in another form; stage `decompose`.
    """
    require_ended("decompose", answer)
    _, text, closed = split_thought(answer.text)
    if not closed:
        raise Rejected("decompose", "a thought that is not closed", answer.text)
    text = text.strip()
    if not text:
        raise Rejected("decompose", "empty", answer.text)
    try:
        steps = json.loads(_without_fence(text))
    except (ValueError, RecursionError):
        raise Rejected("decompose", "not JSON", answer.text) from None
    if not isinstance(steps, list) or not steps:
        raise Rejected("decompose", "not a JSON list of subtasks", answer.text)
    # A list with too many subtasks also has indices past the calls: the count check gives the better reason.
    indices = None if calls is None else max(calls, len(steps))
    for number, step in enumerate(steps, start=1):
        if problem := _find_problem(step, number, needs_index, indices):
            raise Rejected("decompose", problem, answer.text)
    return tuple(" ".join(step["description"].split()) for step in steps)


def check_count(subtasks: Sequence[str], expected: int, answer: Answer) -> None:
    """Raises Rejected with stage `count` unless the number of subtasks |S| is that of the reference calls."""
    if len(subtasks) != expected:
        which = "fewer" if len(subtasks) < expected else "more"
        raise Rejected("count", f"{which} subtasks than reference calls", answer.text)


def check_leaks(
    subtasks: Sequence[str], sample: SeedSample, reference: Sequence[Call], answer: Answer
) -> None:
    """Raises Rejected with stage `decompose` where a description holds a value that only the reference knows.

    Values are texts of three characters or more, a letter with a digit (`k4`), and numbers of three digits or more, found
    as whole words; shorter ones occur in a sentence by chance. Known is all that the prompt shows besides the reference:
    request, policy, tools, and the history with its calls. `5,000,000` and `5000000` are one number.
    """
    shown = [sample.query, sample.policy, json.dumps(sample.tools, ensure_ascii=False)]
    known = _words(" ".join([*shown, *(_prompt_text(message) for message in sample.history)]))
    described = _words(" ".join(subtasks))
    for call in reference:
        for value in _scalars(call.arguments):
            spellings = _spellings(value) if _is_distinctive(value) else ()
            if any(words in described for words in spellings) and not any(
                words in known for words in spellings
            ):
                raise Rejected("decompose", "a description leaks a value of the reference", answer.text)


def _without_fence(text: str) -> str:
    if len(text) < 2 * len(_FENCE) or not (text.startswith(_FENCE) and text.endswith(_FENCE)):
        return text
    return text[len(_FENCE) : -len(_FENCE)].removeprefix("json").strip()


def _find_problem(step: Any, number: int, needs_index: bool, indices: int | None) -> str:
    if not isinstance(step, dict):
        return "a subtask that is not an object"
    if type(step.get("step")) is not int or step["step"] != number:
        return "steps that are not numbered 1, 2, 3"
    description = step.get("description")
    if not isinstance(description, str) or not description.strip():
        return "a subtask without a description"
    if len(description) > MAX_DESCRIPTION:
        return f"a description of over {MAX_DESCRIPTION} characters"
    if flaw := find_flaw(description):
        return f"a description with {flaw}"
    index = step.get("index", None if needs_index else [])
    if not isinstance(index, list) or any(type(item) is not int or item < 0 for item in index):
        return "a subtask whose index is not a list of numbers"
    if indices is not None and any(item >= indices for item in index):
        return "a subtask whose index names no call"
    return ""


def _scalars(value: Any) -> list[str]:
    """Texts and numbers inside a JSON value, as text."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _scalars(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _scalars(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _is_distinctive(value: str) -> bool:
    """Whether a value is too long or too odd to occur in a sentence by chance."""
    return len(value) >= 3 or (len(value) == 2 and value[0].isalpha() and value[1].isdigit())


def _prompt_text(message: Mapping[str, Any]) -> str:
    """A message of the history as the prompt shows it: with its calls, and with the words beside them."""
    return f"{message.get('content')} {inline_calls(dict(message), 'python')['content']}"


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
