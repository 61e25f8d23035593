"""A tool: a JSON schema that the model sees, and a plain Python function over a JSON state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dcore_jax.calls import JSON

# JSON schema's type names; bool is a Python int, so it is taken out by hand below.
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (Mapping,),
    "null": (type(None),),
}


class ToolError(Exception):
    """What a tool says to the model when it cannot do what was asked."""


@dataclass(frozen=True)
class Tool:
    """One tool of a family.

    `parameters` is the JSON schema of the arguments (an object with `properties` and `required`).
    `function(state, **arguments)` may change the state in place and returns JSON; it raises ToolError when
    the arguments are well-formed but the state has no such thing.
    """

    name: str
    description: str
    parameters: Mapping[str, JSON]
    function: Callable[..., JSON]

    def schema(self) -> dict[str, Any]:
        """The tool as an entry of an OpenAI `tools` list."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }


def object_schema(**properties: str) -> dict[str, Any]:
    """The schema of an object with these properties, all required: `object_schema(file="string")`."""
    return {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }


def run_tool(tool: Tool, state: JSON, arguments: Mapping[str, JSON]) -> JSON:
    """The tool's output for these arguments; the state changes in place.

    Raises ToolError when an argument is missing, unknown or of another type than the schema says, or when
    the tool itself does.
    """
    return tool.function(state, **_checked(tool, arguments))


def _checked(tool: Tool, arguments: Mapping[str, JSON]) -> dict[str, JSON]:
    properties = tool.parameters.get("properties", {})
    for name in arguments:
        if name not in properties:
            raise ToolError(f"{tool.name} has no parameter {str(name)[:40]!r}")
    for name in tool.parameters.get("required", ()):
        if name not in arguments:
            raise ToolError(f"{tool.name} needs {name}")
    return {
        name: _as_type(tool.name, name, value, properties[name].get("type"))
        for name, value in arguments.items()
    }


def _as_type(tool: str, name: str, value: JSON, kind: str | None) -> JSON:
    if kind is None:
        return value
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON schema counts 5.0 as an integer
    if isinstance(value, bool) and kind != "boolean":
        raise ToolError(f"{tool}: {name} must be {kind}, not boolean")
    if not isinstance(value, _PYTHON_TYPES[kind]):
        raise ToolError(f"{tool}: {name} must be {kind}")
    return value
