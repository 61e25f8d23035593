"""Byte spans of names, parameters, format and thinking in a response's text, for each call format.

The scanners work on bytes decoded as Latin-1: one character is one byte, every delimiter is ASCII, and no byte of a multi-byte
UTF-8 character equals one. They accept any text, complete or cut off, valid or not, in linear time, and never raise: what they do
not recognise is outside. They only locate; `dcore_jax.calls` decides whether calls are valid.
"""

import re
from collections.abc import Iterator

from dcore_jax.calls import CALL_FORMATS
from dcore_jax.calls.blocks import block_end
from dcore_jax.calls.thought import thought_end
from dcore_jax.errors import check_choice
from dcore_jax.regions.region import PAPER_RULES, Region, RegionRules, Span

_OPEN_THOUGHT, _CLOSE_THOUGHT = "<think>", "</think>"
# Tags of an answer; <response> exists in ToolRL's format only, Python calls stand without tags.
_ANSWER_TAG = {
    "tags": re.compile(r"<(/?)(tool_call|response)>"),
    "qwen": re.compile(r"<(/?)(tool_call)>"),
}
# A JSON string (also one that is cut off at the end of the block) or a structural character of JSON.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}\[\]:,]', re.DOTALL)
# The same for the arguments of a Python call, whose strings may also be single-quoted or triple-quoted.
_PYTHON_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"""|\\?\Z)'
    r"|'''(?:[^'\\]|\\.|'(?!''))*+(?:'''|\\?\Z)"
    r'|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)'
    r"|'(?:[^'\\]|\\.)*+(?:'|\\?\Z)"
    r"|[{}\[\]()]",
    re.DOTALL,
)
# A call list opens the answer; prose such as "see [1]" does not count.
_LIST_OPENS = re.compile(r"[ \t\r\n]*+\[")
# A bare name is any text before the parenthesis; names with special characters are written as strings.
_PYTHON_NAME = re.compile(
    r"""[ \t\r\n]*+(?:"((?:[^"\\\n]|\\.)++)"|'((?:[^'\\\n]|\\.)++)'|([^\[\](){}"'=,\n]++))[ \t]*+\("""
)
_BARE = 3  # the group of _PYTHON_NAME whose trailing spaces are not part of the name
_LIST_GOES_ON = re.compile(r"[ \t\r\n]*([,\]])")
_GAP = re.compile(r"[ \t\r\n,\[\]]+")
_SPACES = " \t\r\n"
_REGION_OF_KEY = {"name": Region.NAME, "parameters": Region.PARAMETERS, "arguments": Region.PARAMETERS}


def region_spans(
    text: bytes | str, call_format: str, *, rules: RegionRules = PAPER_RULES, in_thought: bool = False
) -> list[Span]:
    """Disjoint, sorted byte spans of `text` (UTF-8), each with its region; the bytes between them are OUTSIDE.

    A response that starts inside a thought (the prompt ended with `<think>`) is THINKING up to its `</think>`. A thought or call
    that is cut off extends to the end.

    Args:
      call_format: `python` (D-CORE: `[f(a="x"), g()]`), `tags` (ToolRL, ResT: `<tool_call>` with one JSON object per line),
        `qwen` (one `<tool_call>` per call) or `json` (the answer is an object or a list of them).
      rules: where the borders of regions are.
      in_thought: the prompt opened the thought: a response that does not close it is all THINKING.

    Raises:
      UserError: an unknown call format, and nothing else.
    """
    check_choice("call format", call_format, CALL_FORMATS)
    data = text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else text
    spans = _scan(data.decode("latin-1"), call_format, rules, in_thought)
    return sorted(span for span in spans if span.start < span.end)


def _scan(text: str, call_format: str, rules: RegionRules, in_thought: bool) -> Iterator[Span]:
    """The thought with its tags, up to its end as in `dcore_jax.calls`, then the answer."""
    end = thought_end(text)
    closing = -1 if end is None else end
    leading = len(text) - len(text.lstrip(_SPACES))
    opened = text.startswith(_OPEN_THOUGHT, leading)
    position = 0
    if opened:
        position = _tag_end(text, leading + len(_OPEN_THOUGHT), rules)
        yield Span(leading, position, Region.FORMAT)
    if closing >= 0:
        yield Span(position, closing, Region.THINKING)
        position = _tag_end(text, closing + len(_CLOSE_THOUGHT), rules)
        yield Span(closing, position, Region.FORMAT)
    elif opened or in_thought:
        yield Span(position, len(text), Region.THINKING)
        return
    if call_format == "python":
        yield from _python_calls(text, position, rules)
    elif call_format == "json":
        if text[position:].lstrip(_SPACES)[:1] in ("{", "["):
            yield from _json_calls(text, position, len(text), rules)
    else:
        yield from _tagged(text, position, call_format, rules)


def _tag_end(text: str, end: int, rules: RegionRules) -> int:
    """Where a tag ends: newlines after it belong to the format too, unless only the tags count."""
    if rules.punctuation_is_format:
        while end < len(text) and text[end] == "\n":
            end += 1
    return end


def _tagged(text: str, start: int, call_format: str, rules: RegionRules) -> Iterator[Span]:
    """Tags, and the calls inside `<tool_call>`; a reply inside `<response>` is plain text between two tags."""
    block = closes = -1  # where the open block of calls starts, and where its closing tag is
    for tag in _ANSWER_TAG[call_format].finditer(text, start):
        closing, kind = bool(tag[1]), tag[2]
        if block >= 0:
            if tag.start() != closes:
                continue  # a block ends at its own closing tag, whatever tags its strings hold
            yield from _json_calls(text, block, tag.start(), rules)
        elif closing and kind == "tool_call":
            continue  # closes no block: plain text
        end = _tag_end(text, tag.end(), rules)
        yield Span(tag.start(), end, Region.FORMAT)
        block = end if kind == "tool_call" and not closing else -1
        closes = block_end(text, tag.end()) if block >= 0 else -1
    if block >= 0:
        yield from _json_calls(text, block, len(text), rules)


def _fill(start: int, end: int, claimed: list[Span], rules: RegionRules) -> Iterator[Span]:
    """The `claimed` spans (sorted, within start..end), and FORMAT for the rest where punctuation counts as format."""
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
    depth, opened, key, value = 0, start, "", -1  # value: where the value of key starts, -1 before its colon
    claimed: list[Span] = []
    for match in _JSON_TOKEN.finditer(text, start, end):
        token = text[match.start()]
        if depth == 0:
            if token == "{":  # anything before it, such as the bracket of a list, is not an object
                depth, opened, key, value, claimed = 1, match.start(), "", -1, []
        elif token in "{[":
            depth += 1
        elif token in "}]":
            depth -= 1
            if depth == 0:
                yield opened, match.end(), _claim(text, key, value, match.start(), claimed)
        elif depth > 1:
            continue
        elif token == '"' and value < 0:
            key = match[0].strip('"')
        elif token == ":" and value < 0:
            value = match.end()
        elif token == ",":
            claimed = _claim(text, key, value, match.start(), claimed)
            key, value = "", -1
    if depth:  # cut off
        yield opened, end, _claim(text, key, value, end, claimed)


def _claim(text: str, key: str, start: int, end: int, claimed: list[Span]) -> list[Span]:
    """`claimed`, and the value from `start` to `end` if its key names a region that no earlier value has."""
    region = _REGION_OF_KEY.get(key)
    if start < 0 or region is None or any(span.region is region for span in claimed):
        return claimed
    while start < end and text[start] in _SPACES:
        start += 1
    while start < end and text[end - 1] in _SPACES:
        end -= 1
    if region is Region.NAME:
        if not text.startswith('"', start):
            return claimed  # a name is a string
        start, end = start + 1, end - (end - start > 1 and text[end - 1] == '"')
    return [*claimed, Span(start, end, region)]


def _python_calls(text: str, start: int, rules: RegionRules) -> Iterator[Span]:
    """The list `[name(arguments), ...]` at the start of an answer; a name is any text before `(`."""
    opening = _LIST_OPENS.match(text, start)
    if opening:
        claimed, closed = _python_list(text, opening.end(), len(text), rules)
        if claimed:
            yield from _fill(opening.end() - 1, closed, claimed, rules)


def _python_list(text: str, start: int, end: int, rules: RegionRules) -> tuple[list[Span], int]:
    """Spans of the calls after a `[`, and where the list (or, without `all_calls`, its first call) ends."""
    claimed: list[Span] = []
    position = start
    while name := _PYTHON_NAME.match(text, position, end):
        kind = name.lastindex or 0
        stripped = name[kind].rstrip(_SPACES) if kind == _BARE else name[kind]
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
    """Position of the parenthesis that closes the one before `start`, or `end` if there is none."""
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
