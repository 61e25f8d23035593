"""Calls and arithmetic of a model's text without `eval`: parsed, checked part by part, written anew. Standard library only."""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class NotDecoded(ValueError):
    """An answer that holds no call in the format of its model."""


NO_TOOL = "no_such_tool()"  # what the executor is given for a call of anything but a tool: it fails there as the call would


def rebuilt(call: str, methods: Mapping[str, Any]) -> str:
    """A call written anew from its parts: a known tool, literal values, or further calls of that kind; else `NO_TOOL`."""
    try:
        node = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return NO_TOOL
    return ast.unparse(node) if _is_tool_call(node, methods) else NO_TOOL


def _is_tool_call(node: ast.AST, methods: Mapping[str, Any]) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in methods
        and not node.args
        and all(keyword.arg and _is_literal(keyword.value, methods) for keyword in node.keywords)
    )


def _is_literal(node: ast.AST | None, methods: Mapping[str, Any]) -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return all(_is_literal(element, methods) for element in node.elts)
    if isinstance(node, ast.Dict):
        return all(_is_literal(part, methods) for part in (*node.keys, *node.values))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant) and isinstance(
            node.operand.value, int | float | complex
        )
    return node is not None and _is_tool_call(node, methods)


def named_arguments(call: str, parameters: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """A reference call with every argument under its parameter's name: `{name: {parameter: value}}`.

    Args:
      parameters: names of a tool's parameters in their order, by tool.
    """
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), call
    given = dict(zip(parameters[node.func.id], (ast.literal_eval(value) for value in node.args)))
    given |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return {node.func.id: given}


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}  # fmt: skip
_LARGEST = 10_000  # bits of a number, elements of a text or list that arithmetic may make


def arithmetic(node: ast.AST) -> Any:
    """The value of arithmetic on constants, lists and tuples, as `eval` would give it; bounded.

    Raises:
      NotDecoded: a name, a call, or a value that grows too large.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        values = [arithmetic(element) for element in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = arithmetic(node.operand)
        return -value if isinstance(node.op, ast.USub) else +value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = arithmetic(node.left), arithmetic(node.right)
        _check_bounds(node.op, left, right)
        return _OPERATORS[type(node.op)](left, right)
    raise NotDecoded(f"{type(node).__name__} inside an argument is not evaluated")


def _check_bounds(op: ast.AST, left: Any, right: Any) -> None:
    bits = [value.bit_length() if isinstance(value, int) else 0 for value in (left, right)]
    grown = bits[0] + bits[1]
    if isinstance(op, ast.Pow):
        grown = bits[0] * right if isinstance(right, int) else 0
    elif isinstance(op, ast.LShift):
        grown = bits[0] + right if isinstance(right, int) else 0
    lengths = [len(value) if isinstance(value, str | bytes | list | tuple) else 0 for value in (left, right)]
    if isinstance(op, ast.Mult):
        for length, count in ((lengths[0], right), (lengths[1], left)):
            grown = max(grown, length * count if length and isinstance(count, int) else 0)
    if isinstance(op, ast.Mod) and isinstance(left, str | bytes):
        raise NotDecoded("a text is not formatted")
    if grown > _LARGEST or sum(lengths) > 100 * _LARGEST:
        raise NotDecoded("the value grows too large")
