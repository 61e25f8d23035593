"""Tools: a JSON schema for the model, and a Python function over a JSON state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dcore_jax.calls import JSON

# By JSON schema's type names. In Python a bool is an int: `_checked_value` treats it apart.
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
    """A tool's error message to the model."""


@dataclass(frozen=True)
class Tool:
    """One tool of a family.

    `parameters` is the JSON schema of the arguments (an object with `properties` and `required`).
    `function(state, **arguments)` may change the state in place and returns JSON; it raises ToolError for well-formed
    arguments that do not fit the state.
    """

    name: str
    description: str
    parameters: Mapping[str, JSON]
    function: Callable[..., JSON]
    synonym: str = ""  # its name in the split `names`

    def renamed(self) -> "Tool":
        """The tool under its synonym, if it has one."""
        return replace(self, name=self.synonym) if self.synonym else self

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


def copy_state(state: JSON) -> JSON:
    """A deep copy of a JSON state."""
    if isinstance(state, dict):
        return {key: copy_state(value) for key, value in state.items()}
    return [copy_state(value) for value in state] if isinstance(state, list) else state


def run_tool(tool: Tool, state: JSON, arguments: Mapping[str, JSON]) -> JSON:
    """The tool's output for these arguments; the state changes in place.

    A rule in the state (`{"rule": {"tool", "argument", "value", "text"}}`) forbids the tool for that argument's value.

    Raises:
      ToolError: an argument that is missing, unknown or not of the schema's type; a call that the rule forbids; what the
        tool itself raises.
    """
    checked = _checked_arguments(tool, arguments)
    rule = state.get("rule") if isinstance(state, Mapping) else None
    if rule and rule["tool"] == tool.name and checked.get(rule["argument"]) == rule["value"]:
        raise ToolError(f"the rule says {rule['text']}")
    return tool.function(state, **checked)


def _checked_arguments(tool: Tool, arguments: Mapping[str, JSON]) -> dict[str, JSON]:
    properties = tool.parameters.get("properties", {})
    for name in arguments:
        if name not in properties:
            raise ToolError(f"{tool.name} has no parameter {str(name)[:40]!r}")
    for name in tool.parameters.get("required", ()):
        if name not in arguments:
            raise ToolError(f"{tool.name} needs {name}")
    return {
        name: _checked_value(tool.name, name, value, properties[name].get("type"))
        for name, value in arguments.items()
    }


def _checked_value(tool: str, name: str, value: JSON, kind: str | None) -> JSON:
    if kind is None:
        return value
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON schema counts 5.0 as an integer
    if isinstance(value, bool) and kind != "boolean":
        raise ToolError(f"{tool}: {name} must be {kind}, not boolean")
    if not isinstance(value, _PYTHON_TYPES[kind]):
        raise ToolError(f"{tool}: {name} must be {kind}")
    return value
