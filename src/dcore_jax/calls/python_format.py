r"""D-CORE's call lists, `[f(a="x", b=1), g()]`, parsed by a scanner: nothing is ever evaluated.

    calls     = "[" call ("," call)* ","? "]"
    call      = name "(" (parameter "=" value ("," parameter "=" value)* ","?)? ")"
    value     = string | number | True | False | None | list | tuple | mapping with string keys
    name, parameter = bare | string

A bare name is any run of characters other than brackets, quotes, backslashes, `=`, `,`, `<`, `>` and line
breaks, such as `math.factorial`, `Search Managers` and `user-id`; any other name is written as a string:
`"Stats (v2)"(team="x")`. Tuples become lists, since JSON has no tuples. Strings follow Python: single or double
quotes, triple quotes across lines, the usual escapes (except `\N{...}`); an unknown escape is kept as it is.
"""

import re
from collections.abc import Sequence

from dcore_jax.calls.bounds import (
    MAX_CALLS,
    MAX_DEPTH,
    MAX_VALUES,
    CallSyntaxError,
    check_digits,
    check_text,
    check_value,
)
from dcore_jax.calls.call import JSON, Call

# Possessive quantifiers (`*+`) throughout: no input makes these patterns backtrack.
_SPACE = re.compile(r"[ \t\r\n\f\v]*+")
_NAME = re.compile(r"""[^\s()\[\]{}=,:"'\\<>][^()\[\]{}=,"'\\<>\r\n]*+""")
_STRING = re.compile(
    r'"""((?:[^"\\]++|\\.|"(?!""))*+)"""'
    r"|'''((?:[^'\\]++|\\.|'(?!''))*+)'''"
    r'|"((?:[^"\\\r\n]++|\\.)*+)"'
    r"|'((?:[^'\\\r\n]++|\\.)*+)'",
    re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?+")
_WORD = re.compile(r"[^\W\d]\w*+")
_ESCAPE = re.compile(
    r"\\(?:(\r\n|[\\'\"abfnrtv\n\r])|([0-7]{1,3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([xuUN]))"
)
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SIMPLE_ESCAPES |= {"\n": "", "\r": "", "\r\n": ""}  # a backslash before a line break joins the lines
_CONSTANTS = {"True": True, "False": False, "None": None}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# Tags that structure a response must not appear inside a call's strings.
_TO_ESCAPE = re.compile(r'[\x00-\x1f\x7f"\\]|<(?=/?(?:think|tool_call|tool_response|response)>)')
_WRITTEN = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def parse_python_calls(text: str) -> tuple[Call, ...]:
    """The calls of `[f(a="x"), g()]`; `[]` holds none. Takes linear time.

    Raises:
      CallSyntaxError: a text that breaks the format or a limit of `bounds`, with the position.
    """
    scanner = _Scanner(text)
    scanner.skip_space()
    scanner.expect("[", "no opening bracket")
    calls: list[Call] = []
    scanner.skip_space()
    while not scanner.take("]"):
        if len(calls) == MAX_CALLS:
            raise scanner.error("too many calls")
        calls.append(scanner.call())
        scanner.comma_or("]", "calls not separated by commas")
    scanner.skip_space()
    if scanner.at < len(text):
        raise scanner.error("text after the calls")
    return tuple(calls)


def balanced_end(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`, strings passed over; -1 where it stays open."""
    depth, quote, at = 0, "", start
    while at < len(text):
        character = text[at]
        if quote:
            at += character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[({") - (character in "])}")
            if depth == 0:
                return at + 1
        at += 1
    return -1


def parse_python_value(text: str) -> JSON:
    """A value as Python writes it, such as `{'name': 'f', 'n': None}`; nothing is evaluated. Raises CallSyntaxError."""
    scanner = _Scanner(text)
    value = scanner.value(0)
    scanner.skip_space()
    if scanner.at < len(text):
        raise scanner.error("text after the value")
    return value


def render_python_calls(calls: Sequence[Call]) -> str:
    """`[f(a="x", b=1), g()]`. Raises CallSyntaxError for arguments that JSON cannot represent."""
    return f"[{', '.join(map(_render_call, calls))}]"


class _Scanner:
    """A recursive-descent scanner: a position in the text, and methods that read one thing there and move past it."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.values = 0

    def error(self, reason: str) -> CallSyntaxError:
        return CallSyntaxError(reason, self.at)

    def skip_space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def take(self, character: str) -> bool:
        if self.text.startswith(character, self.at):
            self.at += 1
            return True
        return False

    def expect(self, character: str, reason: str) -> None:
        if not self.take(character):
            raise self.error("cut off" if self.at >= len(self.text) else reason)

    def comma_or(self, closing: str, reason: str) -> bool:
        """Moves past a comma (True), or up to but not past the closing bracket (False)."""
        self.skip_space()
        comma = self.take(",")
        self.skip_space()
        if not comma and not self.text.startswith(closing, self.at):
            raise self.error("cut off" if self.at >= len(self.text) else reason)
        return comma

    def name(self, reason: str) -> str:
        if self.text[self.at : self.at + 1] in ("'", '"'):
            return self.string()
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise self.error("cut off" if self.at >= len(self.text) else reason)
        check_text(match[0])
        self.at = match.end()
        return match[0].rstrip()

    def call(self) -> Call:
        name = self.name("no tool name")
        if not name:
            raise self.error("no tool name")
        self.skip_space()
        self.expect("(", "a tool name without arguments")
        arguments: dict[str, JSON] = {}
        self.skip_space()
        while not self.take(")"):
            parameter = self.name("a positional argument")
            self.skip_space()
            self.expect("=", "a positional argument")
            if parameter in arguments:
                raise self.error("a parameter given twice")
            arguments[parameter] = self.value(0)
            self.comma_or(")", "arguments not separated by commas")
        return Call(name, arguments)

    def value(self, depth: int) -> JSON:
        self.skip_space()
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.error("too many values")
        character = self.text[self.at : self.at + 1]
        if character in ('"', "'"):
            return self.string()
        if character in _CLOSING:
            if depth == MAX_DEPTH:
                raise self.error("nested too deep")
            self.at += 1
            return (
                self.mapping(depth + 1) if character == "{" else self.sequence(_CLOSING[character], depth + 1)
            )
        number = _NUMBER.match(self.text, self.at)
        if number is not None:
            self.at = number.end()
            return self.number(number[0])
        word = _WORD.match(self.text, self.at)
        if word is not None:
            self.at = word.end()
            if word[0] in _CONSTANTS:
                return _CONSTANTS[word[0]]
            raise self.error("a bare word as a value")
        raise self.error("cut off" if not character else "no value")

    def sequence(self, closing: str, depth: int) -> JSON:
        items: list[JSON] = []
        comma = True
        self.skip_space()
        while not self.take(closing):
            items.append(self.value(depth))
            comma = self.comma_or(closing, "items not separated by commas")
        if closing == ")" and len(items) == 1 and not comma:
            return items[0]  # "(1)" is a number in parentheses, "(1,)" a tuple
        return items

    def mapping(self, depth: int) -> dict[str, JSON]:
        items: dict[str, JSON] = {}
        self.skip_space()
        while not self.take("}"):
            if self.text[self.at : self.at + 1] not in ("'", '"'):
                raise self.error("cut off" if self.at >= len(self.text) else "a key that is not a string")
            key = self.string()
            self.skip_space()
            self.expect(":", "a key without a value")
            if key in items:
                raise self.error("a key given twice")
            items[key] = self.value(depth)
            self.comma_or("}", "items not separated by commas")
        return items

    def number(self, written: str) -> int | float:
        try:
            check_digits(written)
        except CallSyntaxError as error:
            raise self.error(error.reason) from None
        if written.lstrip("+-").isdigit():
            if len(written.lstrip("+-")) > 1 and written.lstrip("+-").startswith("0"):
                raise self.error("a number with leading zeros")
            return int(written)
        value = float(written)
        if value - value != 0.0:
            raise self.error("a number that is not finite")
        return value

    def string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise self.error("a string without its closing quote")
        written = match[match.lastindex or 0]
        self.at = match.end()
        try:
            text = _ESCAPE.sub(_unescape, written) if "\\" in written else written
            check_text(text)
        except CallSyntaxError as error:
            raise self.error(error.reason) from None
        return text


def _unescape(match: re.Match[str]) -> str:
    written, kind = match[match.lastindex or 0], match.lastindex
    if kind == 1:
        return _SIMPLE_ESCAPES.get(written, written)
    code = int(written, 8 if kind == 2 else 16) if kind != 6 else -1
    if not 0 <= code <= 0x10FFFF:
        raise CallSyntaxError("an escape that cannot be read")
    return chr(code)


def _render_call(call: Call) -> str:
    if not call.name:
        raise CallSyntaxError("no tool name")
    check_text(call.name)
    check_value(dict(call.arguments))
    arguments = (f"{_render_name(name)}={_render_value(value)}" for name, value in call.arguments.items())
    return f"{_render_name(call.name)}({', '.join(arguments)})"


def _render_name(name: str) -> str:
    match = _NAME.fullmatch(name)
    return name if match and name == name.rstrip() and name.isprintable() else _render_string(name)


def _render_value(value: JSON) -> str:
    if isinstance(value, str):
        return _render_string(value)
    if isinstance(value, dict):
        items = (f"{_render_string(key)}: {_render_value(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_render_value, value))}]"
    if isinstance(value, float):
        return float.__repr__(value)  # not repr: NumPy's float64, a subclass, has another one
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    return repr(value)


def _render_string(text: str) -> str:
    return f'"{_TO_ESCAPE.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    return _WRITTEN.get(match[0], f"\\x{ord(match[0]):02x}")
