"""Whether a rendered turn holds what the record says: thought, content and every call, whatever their notation.

Templates leave parts of a turn out without a word. Llama 3's writes the call of a turn and not the content beside it; those
without a place for `reasoning_content` lose it; Qwen3's keeps, of a content with several `</think>`, what follows the last one.
White space is the template's, and so is the notation of calls (JSON, Python, XML); an absent text never is.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_OPEN, _CLOSE = "<think>", "</think>"


class _Place(NamedTuple):
    start: int
    end: int


def left_out(message: Mapping[str, Any], text: str) -> str | None:
    """Why a turn's text does not teach what the record says; None where it does.

    Args:
      message: an assistant message of a record, with `content`, `reasoning_content` and `tool_calls` where it has them.
      text: what the template wrote of it, as far as it is learned.
    """
    thought, content = message.get("reasoning_content") or "", _content(message)
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    rest = text
    if thought.strip():
        place = _find(rest, thought)
        if place is None:
            return "the template leaves out the turn's thought (reasoning_content)"
        rest = _taken(rest, place)
    if content.strip():
        if not thought.strip() and _mention_made_thought(content, text, bool(calls)):
            return "the template makes a thought of the turn's content before a mention of </think>"
        place = _find(rest, content) or _find_in_parts(rest, content)
        if place is None:
            return "the template leaves out the turn's content, or a part of it"
        rest = _taken(rest, place)
    for call in calls:
        place = _find_call(rest, call.get("name", ""), call.get("arguments"))
        if place is None:
            return "the template leaves out a call of the turn (tool_calls), or its arguments"
        rest = _taken(rest, place)
    return None


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))


def _taken(text: str, place: _Place) -> str:
    """The text without a part that was found, so that no other part is found in it, or across it."""
    return f"{text[: place.start]}\x00{text[place.end :]}"


# --- thought and content ---


def _find(text: str, part: str, start: int = 0) -> _Place | None:
    """The first place of a part, whatever the white space in both."""
    part = part.strip()
    at = text.find(part, start)
    if at >= 0:
        return _Place(at, at + len(part))
    wanted = "".join(part.split())
    at = "".join(text[start:].split()).find(wanted)
    if at < 0:
        return None
    letters = [i for i in range(start, len(text)) if not text[i].isspace()]
    return _Place(letters[at], letters[at + len(wanted) - 1] + 1)


def _find_in_parts(text: str, content: str) -> _Place | None:
    """A content with one thought whose tags the template writes in its own way, or leaves out where the thought is empty."""
    thought, close, answer = content.partition(_CLOSE)
    opened = thought.lstrip().startswith(_OPEN)
    thought = thought.lstrip().removeprefix(_OPEN) if opened else thought
    if not close or _CLOSE in answer or _OPEN in thought:
        return None
    places: list[_Place] = []
    for part in filter(str.strip, (thought, answer)):
        place = _find(text, part, places[-1].end if places else 0)
        if place is None:
            return None
        places.append(place)
    return _Place(places[0].start, places[-1].end) if places else _Place(0, 0)


def _mention_made_thought(content: str, text: str, calls: bool) -> bool:
    """Whether the template opened a thought before a content that opens none and only mentions the closing tag."""
    before, close, after = content.partition(_CLOSE)
    if not close or before.lstrip().startswith(_OPEN):
        return False
    if begins_in_thought(content) and (after.strip() or calls):
        return False
    written, _, _ = "".join(text.split()).partition("".join(before.split()) + _CLOSE)
    return written.endswith(_OPEN)


def begins_in_thought(content: str) -> bool:
    """Whether a content begins in the middle of a thought, whose `<think>` its template writes.

    Its `</think>` then ends or begins a line; amid a line the tag is a mention of it.
    """
    before, close, after = content.partition(_CLOSE)
    return bool(close) and _OPEN not in before and (before.endswith("\n") or after.startswith("\n"))


# --- calls ---


def _find_call(text: str, name: str, arguments: Any) -> _Place | None:
    """One call: a JSON object with its name and arguments, or its name with the arguments behind it in any notation."""
    wanted = _canonical(arguments or {})
    for value, place in _json_objects(text, 0):
        if any(_is_call(inner, name, wanted) for inner in (value, *value.values())):
            return place
    at = text.find(name)
    while at >= 0:
        end = _end_of_arguments(text, at + len(name), arguments or {})
        if end is not None:
            return _Place(at, end)
        at = text.find(name, at + 1)
    return None


def _is_call(value: Any, name: str, wanted: str) -> bool:
    if not isinstance(value, Mapping) or name not in [v for v in value.values() if isinstance(v, str)]:
        return False
    held = [_canonical(_parsed(inner)) for inner in value.values()]
    return wanted in held or (wanted == "{}" and len(value) == 1)


def _end_of_arguments(text: str, start: int, arguments: Mapping[str, Any]) -> int | None:
    """Where the arguments end that stand behind `start`, as JSON or value by value; None where they do not stand there."""
    if not arguments:
        return start
    wanted = _canonical(arguments)
    for value, place in _json_objects(text, start):
        if wanted in (_canonical(value), *(_canonical(_parsed(inner)) for inner in value.values())):
            return place.end
    at = start
    for leaf in _leaves(arguments):
        ends = [found + len(form) for form in _forms(leaf) if (found := text.find(form, at)) >= 0]
        if not ends:
            return None
        at = min(ends)
    return at


def _json_objects(text: str, start: int) -> Iterator[tuple[dict[str, Any], _Place]]:
    """JSON objects in a text, each with its place; those inside another are not given again."""
    decoder, at = json.JSONDecoder(), text.find("{", start)
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            yield value, _Place(at, end)
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)


def _parsed(value: Any) -> Any:
    """A JSON text of an object as what it says; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _leaves(value: Any) -> Iterator[Any]:
    """The keys and scalars of arguments, in their order."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _forms(leaf: Any) -> set[str]:
    """The ways in which a template may write a key or a scalar: as JSON, as Python, as it is, or inside a JSON text."""
    forms = {json.dumps(leaf), json.dumps(leaf, ensure_ascii=False), repr(leaf), str(leaf).strip()}
    return forms | {json.dumps(form)[1:-1] for form in forms} if isinstance(leaf, str) else forms
