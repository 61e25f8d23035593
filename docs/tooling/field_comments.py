"""Griffe extension: one list of a dataclass's or NamedTuple's fields in the API reference, with the text beside each.

The code explains a field in a string below it, or in a comment at the end of its line or above it. Each class with
fields gets an `Attributes:` section of them, unless its docstring has one.
"""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe

_MAKERS = ("dataclass", "NamedTuple")
_NOTHING = "&#8203;"  # a section wants some text; this one has no width


class FieldComments(griffe.Extension):
    def on_class_members(self, *, node: Any, cls: griffe.Class, agent: Any, **_: Any) -> None:
        if not isinstance(node, ast.ClassDef) or not _has_fields(node):
            return
        written = cls.docstring.value if cls.docstring else ""
        fields = _fields(node)
        if not fields or "Attributes:\n" in written:
            return
        lines = []
        for field in fields:
            member = cls.members[field.target.id]
            below = " ".join(member.docstring.value.split()) if member.docstring else ""
            lines.append(_entry(field, below or _comment(field, Path(cls.filepath))))
            member.docstring = None  # the list says it; a heading of its own would say it again
        text = f"{written}\n\nAttributes:\n" + "\n".join(lines)
        cls.docstring = griffe.Docstring(
            text,
            lineno=node.lineno,
            parent=cls,
            parser=agent.docstring_parser,
            parser_options=agent.docstring_options,
        )


def _has_fields(node: ast.ClassDef) -> bool:
    return any(
        maker in ast.unparse(part) for part in (*node.decorator_list, *node.bases) for maker in _MAKERS
    )


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    found = [
        item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
    return [item for item in found if not item.target.id.startswith("_")]


def _entry(field: ast.AnnAssign, text: str) -> str:
    """The field's line of the section: its text, and its default where it has one."""
    if field.value is not None:
        stop = "" if not text or text.endswith((".", ":")) else "."
        text = f"{text}{stop} Default: `{_default(field.value)}`.".strip()
    return f"  {field.target.id}: {text or _NOTHING}"


def _default(value: ast.expr) -> str:
    """The default as the code has it; for `field(...)` what it is told, the call of its factory included."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        told = {word.arg: ast.unparse(word.value) for word in value.keywords}
        return told.get("default") or f"{told.get('default_factory', '')}()"
    return ast.unparse(value)


def _comment(field: ast.AnnAssign, path: Path) -> str:
    beside, above = _comments(path)
    at = [
        beside[line] for line in range(field.lineno, (field.end_lineno or field.lineno) + 1) if line in beside
    ]
    if not at:
        first = field.lineno
        while first - 1 in above:
            first -= 1
        at = [above[line] for line in range(first, field.lineno)]
    return " ".join(at)


@cache
def _comments(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those that stand beside code, and those that have a line to themselves."""
    beside: dict[int, str] = {}
    above: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            text = token.string.lstrip("# ").partition("noqa")[0].strip()
            (above if alone else beside)[token.start[0]] = text
    return beside, above
