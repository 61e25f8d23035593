"""Griffe extension: `rewards, groups, mask: as in grpo` in a docstring's sections documents each of the three.

Griffe knows an entry of one name only and would warn of a parameter called "rewards, groups, mask".
"""

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(Args|Attributes):$")
_ENTRY = re.compile(r"^(\s+)(\w+(?:, \w+)+): (.*)$")


class JointParameters(griffe.Extension):
    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        if func.docstring:
            func.docstring.value = one_name_each(func.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.docstring:
            cls.docstring.value = one_name_each(cls.docstring.value)


def one_name_each(docstring: str) -> str:
    """The docstring with every entry of several names written once for each of them."""
    written: list[str] = []
    names: list[str] = []  # of the joint entry that is being read
    entry: list[str] = []
    indent = ""
    inside = False
    for line in [*docstring.splitlines(), ""]:
        if names and line.startswith(f"{indent} "):
            entry.append(line)
            continue
        for name in names:
            written += [f"{indent}{name}: {entry[0]}", *entry[1:]]
        names, entry = [], []
        inside = bool(_HEADING.match(line)) or (inside and line.startswith(" "))
        joint = _ENTRY.match(line) if inside else None
        if joint:
            indent, names, entry = joint[1], joint[2].split(", "), [joint[3]]
        else:
            written.append(line)
    return "\n".join(written).rstrip()
