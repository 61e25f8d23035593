"""Where names, parameters, format and thinking stand in a response's text, in each of the three call formats.

The scanners work on bytes seen as Latin-1: one character is one byte, every delimiter is ASCII, and no byte
of a multi-byte UTF-8 character can be taken for one. They accept any text, finished or cut off, valid or not,
in time linear in its length, and never raise: what they cannot place stays outside. They find places;
`dcore_jax.calls` decides validity.
"""

import re
from collections.abc import Iterator

from dcore_jax.errors import UserError
from dcore_jax.regions.region import PAPER_RULES, Region, RegionRules, Span

CALL_FORMATS = ("python", "tags", "qwen")

# Tags that carry the format of a response; <response> exists in ToolRL's format only.
_TAG = {
    "python": re.compile(r"<(/?)(think)>"),
    "tags": re.compile(r"<(/?)(think|tool_call|response)>"),
    "qwen": re.compile(r"<(/?)(think|tool_call)>"),
}
# A JSON string (also one cut off at the end of the block) or one character of JSON's structure.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\]:,]', re.DOTALL)
# The same for the arguments of a Python call, whose strings may also be single-quoted or tripled.
_PYTHON_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"""|\\?\Z)'
    r"|'''(?:[^'\\]|\\.|'(?!''))*+(?:'''|\\?\Z)"
    r'|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)'
    r"|'(?:[^'\\]|\\.)*+(?:'|\\?\Z)"
    r"|[{}\[\]()]",
    re.DOTALL,
)
# A call list opens at the start of a line; prose such as "see [1]" does not count.
_LIST_OPENS = re.compile(r"[ \t\r\n]*+\[")
_LIST_OPENS_LATER = re.compile(r"\n[ \t]*+\[")
# A bare name is whatever stands before the parenthesis; one that cannot stand bare is written as a string.
_PYTHON_NAME = re.compile(
    r"""[ \t\r\n]*+(?:"((?:[^"\\\n]|\\.)++)"|'((?:[^'\\\n]|\\.)++)'|([^\[\](){}"'=,\n]++))[ \t]*+\("""
)
_LIST_GOES_ON = re.compile(r"[ \t\r\n]*([,\]])")
_GAP = re.compile(r"[ \t\r\n,\[\]]+")
_SPACES = " \t\r\n"
_REGION_OF_KEY = {"name": Region.NAME, "parameters": Region.PARAMETERS, "arguments": Region.PARAMETERS}


def region_spans(text: bytes | str, call_format: str, *, rules: RegionRules = PAPER_RULES) -> list[Span]:
    """Disjoint, sorted byte spans of `text` (UTF-8), each with its region; what lies between them is OUTSIDE.

    `call_format` is `python` (D-CORE: `[f(a="x"), g()]`), `tags` (ToolRL, ResT: `<tool_call>` with one JSON
    object a line) or `qwen` (one `<tool_call>` per call). A response that begins inside a thought (the prompt
    ended with `<think>`) is thinking up to its `</think>`; a thought or call that is cut off reaches to the
    end. Raises `UserError` for an unknown call format and for nothing else.
    """
    if call_format not in CALL_FORMATS:
        raise UserError(f"call format {call_format!r} is unknown; choose one of {', '.join(CALL_FORMATS)}")
    data = text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else text
    spans = _scan(data.decode("latin-1"), call_format, rules)
    return sorted(span for span in spans if span.start < span.end)


def _scan(text: str, call_format: str, rules: RegionRules) -> Iterator[Span]:
    """Walk over the tags; what stands between two of them is a thought, a block of calls, or plain text."""
    tags = list(_TAG[call_format].finditer(text))
    thought_tags = [tag for tag in tags if tag[2] == "think"]
    inside = "think" if thought_tags and thought_tags[0][1] else ""
    position = 0
    for tag in tags:
        closing, kind = bool(tag[1]), tag[2]
        if inside and not (closing and kind == inside):
            continue  # a thought or a block of calls ends at its own closing tag, whatever else it mentions
        if not inside and closing and kind != "response":
            continue  # a stray closing tag is plain text
        yield from _between(text, position, tag.start(), inside, call_format, rules)
        position = _tag_end(text, tag.end(), rules)
        yield Span(tag.start(), position, Region.FORMAT)
        # The reply inside <response> is plain text: only its tags are format.
        inside = "" if closing or kind == "response" else kind
    yield from _between(text, position, len(text), inside, call_format, rules)


def _tag_end(text: str, end: int, rules: RegionRules) -> int:
    """The newlines after a tag are part of what the format asks for, unless only the tags count."""
    if rules.punctuation_is_format:
        while end < len(text) and text[end] == "\n":
            end += 1
    return end


def _between(
    text: str, start: int, end: int, inside: str, call_format: str, rules: RegionRules
) -> Iterator[Span]:
    if inside == "think":
        yield Span(start, end, Region.THINKING)
    elif inside == "tool_call":
        yield from _json_calls(text, start, end, rules)
    elif call_format == "python":
        yield from _python_calls(text, start, end, rules)


def _fill(start: int, end: int, claimed: list[Span], rules: RegionRules) -> Iterator[Span]:
    """`claimed` (sorted, within start..end), and FORMAT for the rest where punctuation counts as format."""
    yield from claimed
    if rules.punctuation_is_format:
        for span in claimed:
            yield Span(start, span.start, Region.FORMAT)
            start = span.end
        yield Span(start, end, Region.FORMAT)


def _json_calls(text: str, start: int, end: int, rules: RegionRules) -> Iterator[Span]:
    """JSON objects in a block of calls, with or without a list around them."""
    position = start
    for number, (opened, closed, claimed) in enumerate(_json_objects(text, start, end)):
        if number and not rules.all_calls:
            return
        yield from _gap(text, position, opened, rules)
        yield from _fill(opened, closed, claimed, rules)
        position = closed
    yield from _gap(text, position, end, rules)


def _gap(text: str, start: int, end: int, rules: RegionRules) -> Iterator[Span]:
    """Newlines, commas and brackets between the objects of a block; other text there is not format."""
    if rules.punctuation_is_format:
        for match in _GAP.finditer(text, start, end):
            yield Span(match.start(), match.end(), Region.FORMAT)


def _json_objects(text: str, start: int, end: int) -> Iterator[tuple[int, int, list[Span]]]:
    """(start, end, spans of its name and parameters) of every outermost JSON object."""
    depth, opened, key = 0, start, ""
    wants_value, value_from, value_start = False, start, -1
    claimed: list[Span] = []

    def claim(value_from: int, value_to: int) -> None:
        """Take the value just read if its key is one of ours, the first of its kind in this object."""
        region = _REGION_OF_KEY.get(key)
        if region and all(span.region is not region for span in claimed):
            claimed.append(Span(value_from, value_to, region))

    for match in _JSON_TOKEN.finditer(text, start, end):
        token = text[match.start()]
        if token in "{[":
            if depth == 0 and token == "[":
                continue  # a list around the calls
            if depth == 0:
                opened, key, value_start, wants_value, claimed = match.start(), "", -1, False, []
            elif depth == 1 and wants_value and value_start < 0:
                value_start = match.start()
            depth += 1
        elif token in "}]":
            if depth == 2 and value_start >= 0:
                if key != "name":
                    claim(value_start, match.end())
                wants_value, value_start = False, -1
            elif depth == 1:
                if wants_value and key != "name":
                    claim(_skip_spaces(text, value_from, match.start()), match.start())
                yield opened, match.end(), claimed
            depth = max(depth - 1, 0)
        elif depth != 1:
            continue
        elif token == '"':
            whole = match.end() - match.start() > 1 and text[match.end() - 1] == '"'
            inner = (match.start() + 1, match.end() - 1 if whole else match.end())
            if not wants_value:
                key = text[slice(*inner)]
            else:
                claim(*(inner if key == "name" else match.span()))
                wants_value = False
        elif token == ":":
            wants_value, value_start, value_from = bool(key), -1, match.end()
        elif wants_value:  # a comma after a number, true, false or null
            if key != "name":
                claim(_skip_spaces(text, value_from, match.start()), match.start())
            wants_value = False
        if token == ",":
            key = ""
    if depth:  # cut off
        if value_start >= 0 and key != "name":
            claim(value_start, end)
        yield opened, end, claimed


def _skip_spaces(text: str, start: int, end: int) -> int:
    while start < end and text[start] in _SPACES:
        start += 1
    return start


def _python_calls(text: str, start: int, end: int, rules: RegionRules) -> Iterator[Span]:
    """Call lists `[name(arguments), ...]` at the start of a line; a name is whatever stands before `(`."""
    opening = _LIST_OPENS.match(text, start, end) or _LIST_OPENS_LATER.search(text, start, end)
    while opening:
        position = opening.end()
        claimed, closed = _python_list(text, position, end, rules)
        if claimed:
            yield from _fill(opening.end() - 1, closed, claimed, rules)
            position = closed
        opening = _LIST_OPENS_LATER.search(text, position, end)


def _python_list(text: str, start: int, end: int, rules: RegionRules) -> tuple[list[Span], int]:
    """Spans of the calls after a `[`, and where the list (or what is weighted of it) ends."""
    claimed: list[Span] = []
    position = start
    while name := _PYTHON_NAME.match(text, position, end):
        kind = name.lastindex or 0
        stripped = name[kind].rstrip(_SPACES)
        closed = _closing_parenthesis(text, name.end(), end)
        claimed.append(Span(name.start(kind), name.start(kind) + len(stripped), Region.NAME))
        claimed.append(Span(name.end(), closed, Region.PARAMETERS))
        position = min(closed + 1, end)
        separator = _LIST_GOES_ON.match(text, position, end)
        if not separator or not rules.all_calls:
            break
        position = separator.end()
        if separator[1] == "]":
            break
    return claimed, position


def _closing_parenthesis(text: str, start: int, end: int) -> int:
    """Where the parenthesis opened before `start` closes, or `end` when it never does."""
    depth = 1
    for match in _PYTHON_TOKEN.finditer(text, start, end):
        token = text[match.start()]
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
            if depth == 0:
                return match.start()
    return end
