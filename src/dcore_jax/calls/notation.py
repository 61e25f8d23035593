"""Calls in a notation that is not known beforehand: data are read in whatever notation they are in.

Read, beside the four formats of `response.py`: blocks with objects of either argument key, one or several, as a list, or
written as Python mappings (Hermes); `<functioncall>` with arguments as quoted JSON (glaive); `<|python_tag|>` and `[TOOL_CALLS]`
before JSON (Llama 3, Mistral); a list of Python calls inside other text (ToolACE). What else attempts a call is an error, never
"no call".
"""

import json
import re
from collections.abc import Collection, Iterator

from dcore_jax.calls.blocks import CLOSE, OPEN, find_blocks
from dcore_jax.calls.bounds import MAX_CALLS, CallSyntaxError, check_value
from dcore_jax.calls.call import JSON, Call
from dcore_jax.calls.json_format import ARGUMENT_KEYS, load_json, parse_bare_json_calls, parse_json_calls
from dcore_jax.calls.parsed import CallFormat, ParsedResponse
from dcore_jax.calls.python_format import balanced_end, parse_python_calls, parse_python_value

ANOTHER_NOTATION = "calls in another notation"
NOT_READ = "calls in a notation that is not read"

_BLOCK = re.compile(r"<tool_call>\s*+[\[{<]")
_GLAIVE = re.compile(r"<functioncall>\s*+(?=\{)")
_GLAIVE_QUOTED = re.compile(
    r"""\{\s*+"name"\s*+:\s*+("(?:[^"\\]++|\\.)*+")\s*+,\s*+"arguments"\s*+:\s*+'(.*)'\s*\}""", re.DOTALL
)
_PREFIX = re.compile(r"\s*+(?:<\|python_tag\|>|\[TOOL_CALLS\])\s*+(?=[\[{])")
_MARKED = re.compile(
    r"<tool_call>\s*+[\[{<]|<functioncall>|<function=|<\|python_tag\|>|\[TOOL_CALLS\]|<｜tool▁call|<\|tool_call"
    r"|<invoke name=|^Action:[^\n]++\n++Action Input:",
    re.MULTILINE,
)
_NAME = r"""(?:"(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|[^\s()\[\]{}=,:"'\\<>][^()\[\]{}=,"'\\<>\r\n]*+)"""
# A list of calls: a bracket, a name, and a parenthesis that is closed at once or holds `parameter=`.
_LIST_OF_CALLS = re.compile(rf"\[\s*+{_NAME}\(\s*+(?:\)|{_NAME}=)")
# The same as a whole answer, whatever stands in the parentheses, such as positional arguments.
_WHOLE_LIST = re.compile(r"\[\s*+[A-Za-z_][\w.\-]*+\(.*\)\s*\]", re.DOTALL)
_PLAIN_CALL = re.compile(r"\[\s*+[A-Za-z_][\w.\-]*+\(")
_CALL_KEY = re.compile(r'\{\s*+"(?:name|arguments|parameters)"\s*+:')
_AWKWARD = re.compile(r"[()\[\]{}=,\"'\\<>]")
_CONSTANTS = {"true": "True", "false": "False", "null": "None"}
_STRING_OR_CONSTANT = re.compile(
    r'"(?:[^"\\]++|\\.)*+"|\'(?:[^\'\\]++|\\.)*+\'|(?<=[=:,\[\s])(?:true|false|null)(?=\s*[,)\]}])', re.DOTALL
)
# How instructions show a list of calls: `[func_name1(params_name1=...)]`.
_SHOWN_LIST = re.compile(r"\[\s*\w+\((?:\w+=|\.\.\.|params)")
_MAX_LISTS = 16  # brackets inside a text that are tried as a list of calls


def attempts_python_calls(answer: str) -> bool:
    """Whether a stripped answer is in brackets as a whole (the rule of the D-CORE release), or starts like a list of calls."""
    whole = answer.startswith("[") and answer.endswith("]") and len(answer) > 1
    return whole or starts_like_python_calls(answer)


def starts_like_python_calls(answer: str) -> bool:
    """Whether a stripped answer starts with a list of calls, which may be cut off, or is one with positional arguments."""
    if _LIST_OF_CALLS.match(answer) or _WHOLE_LIST.fullmatch(answer):
        return True
    return _PLAIN_CALL.match(answer) is not None and balanced_end(answer, 0) < 0


def attempts_json_calls(answer: str) -> bool:
    """Whether a stripped answer is a JSON object with a name and arguments, a list of them, or the start of one."""
    text = answer.removeprefix("[").lstrip()
    if not text.startswith("{"):
        return False
    if '"name"' in text and any(f'"{key}"' in text for key in ARGUMENT_KEYS):
        return True
    return _CALL_KEY.match(text) is not None and not answer.endswith(("}", "]"))


def attempts_call(answer: str) -> bool:
    """Whether an answer attempts a call in any notation."""
    text = answer.strip()
    if _MARKED.search(text) or attempts_json_calls(text) or starts_like_python_calls(text):
        return True
    return next(_lists_in(answer), None) is not None


def instructed_notation(system: str) -> CallFormat | None:
    """The notation that a system turn with instructions of its own asks for; None where it names none."""
    if "<tool_call>" in system:
        return "tags" if '"parameters"' in system or "'parameters'" in system else "qwen"
    return "python" if _SHOWN_LIST.search(system) else None


def read_answer(answer: str, names: Collection[str] = ()) -> tuple[ParsedResponse, CallFormat | None]:
    """The calls and the words of an answer without thought, and its notation, as `parse_any_response` returns them."""
    text = answer.strip()
    listed = text == "[]" or starts_like_python_calls(text) or _named_list(text, names) == 0
    try:
        problem = None
        for attempted, parse, notation in (
            (listed and text.endswith("]"), lambda: _python_calls(text, names), "python"),
            (attempts_json_calls(text), lambda: parse_bare_json_calls(text), "json"),
        ):
            try:
                if attempted:
                    return ParsedResponse(None, parse(), "", text), notation
            except CallSyntaxError as error:
                problem = error
        if _BLOCK.search(text):
            return _read_blocks(text)
        if prefix := _PREFIX.match(text):
            return ParsedResponse(None, parse_bare_json_calls(text[prefix.end() :]), "", text), "json"
        if glaive := _GLAIVE.search(text):
            call = _glaive_call(text[glaive.end() :])
            return ParsedResponse(None, (call,), text[: glaive.start()].strip(), text[glaive.start() :]), None
        if problem is not None:
            raise problem
        for start, end in _lists_of(text, names):
            calls, words = (
                _python_calls(text[start:end], names),
                f"{text[:start].strip()}\n{text[end:].strip()}",
            )
            return ParsedResponse(None, calls, words.strip(), text[start:end]), "python"
        if listed:
            raise CallSyntaxError("cut off")
        if _MARKED.search(text):
            raise CallSyntaxError(NOT_READ)
    except CallSyntaxError as error:
        return ParsedResponse(None, None, "", text, error.reason), None
    return ParsedResponse(None, (), text), None


def _read_blocks(text: str) -> tuple[ParsedResponse, CallFormat | None]:
    spans = find_blocks(text)
    blocks = [text[start:end] for start, end in spans]
    first, end = spans[0][0] - len(OPEN), spans[-1][1] + len(CLOSE)
    words, at = "", 0
    for start, stop in spans:
        words, at = words + text[at : start - len(OPEN)], stop + len(CLOSE)
    words = (words + text[at:]).strip()
    for notation, key, one_per_line in (("qwen", "arguments", False), ("tags", "parameters", True)):
        try:
            calls = parse_json_calls(blocks, key, one_per_line=one_per_line)
            if not calls:
                break
            return ParsedResponse(None, calls, words, text[first:end]), notation
        except CallSyntaxError:
            continue
    calls = tuple(_call_of(item) for block in blocks for item in _objects(block))
    if not calls or len(calls) > MAX_CALLS:
        raise CallSyntaxError("too many calls" if calls else "an empty call block")
    return ParsedResponse(None, calls, words, text[first:end]), None


def _objects(block: str) -> Iterator[JSON]:
    """The objects of a block: the block as a whole, or each of its lines."""
    if block.lstrip().startswith("<"):
        raise CallSyntaxError(NOT_READ)
    pieces = [block]
    try:
        values = [_value(block)]
    except CallSyntaxError:
        pieces = [line for line in block.split("\n") if line.strip()]
        values = [_value(piece) for piece in pieces]
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _value(text: str) -> JSON:
    """JSON, or a mapping or list as Python writes it."""
    try:
        return load_json(text)
    except CallSyntaxError as error:
        try:
            return parse_python_value(text)
        except CallSyntaxError:
            raise error from None


def _call_of(item: JSON) -> Call:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    key = next((key for key in ARGUMENT_KEYS if isinstance(item, dict) and key in item), None)
    if key is None or not isinstance(item.get("name"), str) or not item["name"]:
        raise CallSyntaxError("a call that is not an object with a name and arguments")
    arguments = item[key]
    if isinstance(arguments, str):
        arguments = _value(arguments)
    if not isinstance(arguments, dict):
        raise CallSyntaxError(f'"{key}" that is not an object')
    check_value(arguments)
    return Call(item["name"], arguments)


def _glaive_call(text: str) -> Call:
    """The call of `{"name": "f", "arguments": '{"a": 1}'}`, whose arguments may also be an object or a JSON string."""
    text = text.strip().removesuffix("<|endoftext|>").strip()
    try:
        return _call_of(load_json(text))
    except CallSyntaxError:
        quoted = re.fullmatch(
            r"\{\s*\"name\"\s*:\s*(\"(?:[^\"\\]|\\.)*+\")\s*,\s*\"arguments\"\s*:\s*'(.*)'\s*\}",
            text,
            re.DOTALL,
        )
        if quoted is None:
            raise
    return _call_of({"name": load_json(quoted[1]), "arguments": load_json(quoted[2].replace("\\'", "'"))})


def _python_calls(text: str, names: Collection[str]) -> tuple[Call, ...]:
    try:
        return parse_python_calls(text)
    except CallSyntaxError as error:
        try:
            return parse_python_calls(_repaired(text, names))
        except CallSyntaxError:
            raise error from None


def _repaired(text: str, names: Collection[str]) -> str:
    """The calls with Python's constants for JSON's, and with quotes around offered names that are no plain words."""
    if awkward := [name for name in names if _AWKWARD.search(name)]:
        called = rf"(^\[\s*|\)\s*,\s*)({'|'.join(map(re.escape, awkward))})(?=\s*\()"
        text = re.sub(called, lambda match: match[1] + json.dumps(match[2], ensure_ascii=False), text)
    return _STRING_OR_CONSTANT.sub(lambda match: _CONSTANTS.get(match[0], match[0]), text)


def _named_list(text: str, names: Collection[str]) -> int:
    """Where a bracket is followed by an offered name and a parenthesis; -1 without one."""
    if not names:
        return -1
    found = re.search(rf"\[\s*(?:{'|'.join(map(re.escape, names))})\s*\(", text)
    return found.start() if found else -1


def _lists_of(text: str, names: Collection[str]) -> Iterator[tuple[int, int]]:
    """The first list of calls inside other text, by the offered names or by its form."""
    start = _named_list(text, names)
    if start >= 0:
        end = balanced_end(text, start)
        if end < 0:
            raise CallSyntaxError("cut off")
        yield start, end
        return
    found = next(_lists_in(text), None)
    if found is not None:
        yield found


def _lists_in(text: str) -> Iterator[tuple[int, int]]:
    """Lists of calls inside a text that can be parsed."""
    for match, _ in zip(_LIST_OF_CALLS.finditer(text), range(_MAX_LISTS)):
        end = balanced_end(text, match.start())
        if end < 0:
            return
        try:
            parse_python_calls(text[match.start() : end])
        except CallSyntaxError:
            continue
        yield match.start(), end
