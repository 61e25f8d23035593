"""Tool descriptions in the data sets' dialects, as OpenAI function schemas.

Three dialects are read: OpenAI's own, the bare `{"name", "description", "parameters": <JSON schema>}` with
Python's type names (`dict`, `float`), and xLAM's flat `{"name", ..., "parameters": {"city": {"type":
"str, optional", "description": ..., "default": ...}}}`. In the flat one a parameter is required unless its
type is marked as optional or it has a default.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dcore_jax.calls import Call
from dcore_jax.data.malformed import Malformed, decode_json

Schema = dict[str, Any]

# JSON schema's name of a type by the names the data sets use (Python's, Java's, their own); None: any value.
_TYPES: dict[str, str | None] = {
    **dict.fromkeys(("str", "string", "text", "char", "date", "datetime", "time"), "string"),
    **dict.fromkeys(("int", "integer", "long", "short"), "integer"),
    **dict.fromkeys(("float", "number", "double", "decimal"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("list", "array", "tuple", "set", "sequence", "arraylist"), "array"),
    **dict.fromkeys(("dict", "object", "mapping", "hashmap", "map"), "object"),
    **dict.fromkeys(("none", "null", "nonetype"), "null"),
    "any": None,
}
_MAX_DEPTH = 16


def openai_tools(value: Any) -> tuple[Schema, ...]:
    """OpenAI function schemas of a list of tool descriptions, or of its JSON text.

    Schemas are cached and shared between samples: do not change them.

    Raises:
      Malformed: something else, or two different tools of one name.
    """
    return _from_text(value) if isinstance(value, str) else _from_list(value)


def openai_tool(value: Any) -> Schema:
    """The OpenAI function schema of one tool description; such a schema is returned as it is. Raises `Malformed`."""
    if not isinstance(value, dict):
        raise Malformed("a tool that is not an object")
    function = value["function"] if isinstance(value.get("function"), dict) else value
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise Malformed("a tool without a name")
    parameters = function.get("parameters", function.get("arguments"))
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise Malformed("a tool whose parameters are not an object")
    schema = _normalise(parameters) if _is_json_schema(parameters) else _flat_to_json_schema(parameters)
    description = function.get("description")
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description if isinstance(description, str) else "",
            "parameters": {
                **schema,
                "type": "object",
                "properties": schema.get("properties", {}),
                "required": schema.get("required", []),
            },
        },
    }


def type_schema(written: str) -> tuple[Schema, bool]:
    """`(schema, optional)` of a type as the data sets write it: `"List[int], optional"`, `"Union[str, int]"`.

    The schema of an unknown type has no `type`, which allows any value.
    """
    base, *remarks = _split(written, ",") or [""]
    optional = any("optional" in remark.lower() or "default" in remark.lower() for remark in remarks)
    base, parenthesis, remark = base.partition("(")
    optional = optional or (bool(parenthesis) and "optional" in remark.lower())
    if base.strip().lower().startswith("optional["):
        base, optional = base.strip()[len("optional[") :].removesuffix("]"), True
    return _of_type(base.strip(), 0), optional


def tool_name(tool: Schema) -> str:
    """The name in an OpenAI function schema."""
    return str(tool["function"]["name"])


def check_calls(calls: Sequence[Call], tools: Sequence[Schema]) -> None:
    """Raises `Malformed` for a call of a tool that is not offered, with an unknown parameter or without a required one."""
    parameters = {tool_name(tool): tool["function"]["parameters"] for tool in tools}
    for call in calls:
        schema = parameters.get(call.name)
        if schema is None:
            raise Malformed("a reference call to a tool that is not offered")
        known = schema["properties"]
        if not schema.get("additionalProperties") and any(name not in known for name in call.arguments):
            raise Malformed("a reference call with a parameter that its tool does not have")
        if any(name not in call.arguments for name in schema["required"]):
            raise Malformed("a reference call without a required parameter")


def relax_required(tools: Sequence[Schema], calls: Sequence[Call]) -> tuple[Schema, ...]:
    """The tools, with parameters that the record's own calls leave out no longer required.

    For the flat dialect, in which required parameters are only inferred: the calls are better evidence.
    """
    left_out: dict[str, set[str]] = {}
    for call in calls:
        left_out.setdefault(call.name, set()).update(_required(tools, call.name) - call.arguments.keys())
    return tuple(_relaxed(tool, left_out.get(tool_name(tool), set())) for tool in tools)


def _required(tools: Sequence[Schema], name: str) -> set[str]:
    return {
        required
        for tool in tools
        if tool_name(tool) == name
        for required in tool["function"]["parameters"]["required"]
    }


def _relaxed(tool: Schema, left_out: set[str]) -> Schema:
    if not left_out:
        return tool
    function, parameters = tool["function"], tool["function"]["parameters"]
    required = [name for name in parameters["required"] if name not in left_out]
    return {**tool, "function": {**function, "parameters": {**parameters, "required": required}}}


@lru_cache(maxsize=4096)
def _from_text(text: str) -> tuple[Schema, ...]:
    return _from_list(decode_json(text, "tools are a string that is not JSON"))


def _from_list(value: Any) -> tuple[Schema, ...]:
    if not isinstance(value, list | tuple):
        raise Malformed("tools must be a list")
    tools: tuple[Schema, ...] = ()
    for tool in value:
        schema = _from_one(json.dumps(tool, default=str))
        if schema not in tools:  # a tool that is listed twice
            tools += (schema,)
    if len({tool_name(tool) for tool in tools}) < len(tools):
        raise Malformed("two different tools of one name")
    return tools


@lru_cache(maxsize=65_536)
def _from_one(text: str) -> Schema:
    """Cached: a hundred thousand samples of a data set share a few thousand tools."""
    return openai_tool(json.loads(text))


def _is_json_schema(parameters: Schema) -> bool:
    """Whether parameters are a JSON schema, and not the flat dialect with parameters named `type` and `properties`."""
    properties = parameters.get("properties")
    described = isinstance(properties, dict) and all(isinstance(item, dict) for item in properties.values())
    return isinstance(parameters.get("type", "object"), str) and (described or "type" in parameters)


def _flat_to_json_schema(parameters: Schema) -> Schema:
    properties, required = {}, []
    for name, described in parameters.items():
        if not isinstance(described, dict):
            raise Malformed("a parameter that is not an object")
        schema, optional = _normalise_parameter(described, 0)
        if schema.get("default") in ("", None):
            schema.pop("default", None)
        properties[name] = schema
        if not optional and "default" not in schema:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}


def _normalise(schema: Schema, depth: int = 0) -> Schema:
    return _normalise_parameter(schema, depth)[0]


def _normalise_parameter(schema: Schema, depth: int) -> tuple[Schema, bool]:
    """`(schema, optional)`: the schema and every schema inside it with JSON schema's type names."""
    if depth > _MAX_DEPTH:
        raise Malformed("a tool schema nested too deep")
    result = {key: value for key, value in schema.items() if key not in ("type", "required", "properties")}
    of_type, optional = _declared_type(schema.get("type"))
    if "type" in schema and not of_type and str(schema["type"]).lower() != "any":
        described = result.get("description")
        result["description"] = (
            f"{described if isinstance(described, str) else ''} ({schema['type']})".strip()
        )
    result = {**of_type, **result}
    if isinstance(properties := schema.get("properties"), dict):
        result["properties"] = {
            name: _normalise(inner, depth + 1) if isinstance(inner, dict) else {}
            for name, inner in properties.items()
        }
        if isinstance(required := schema.get("required"), list):
            result["required"] = [name for name in required if isinstance(name, str) and name in properties]
    if isinstance(items := schema.get("items"), dict):
        result["items"] = _normalise(items, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(branches := schema.get(key), list):
            result[key] = [_normalise(branch, depth + 1) for branch in branches if isinstance(branch, dict)]
    return result, optional


def _declared_type(written: Any) -> tuple[Schema, bool]:
    if isinstance(written, str):
        return type_schema(written)
    if isinstance(written, list) and all(isinstance(item, str) for item in written):
        return _union([type_schema(item)[0] for item in written]), False
    return {}, False


def _of_type(written: str, depth: int) -> Schema:
    name, bracket, rest = written.partition("[")
    alternatives = _split(written, "|")
    inside = _split(rest.strip().removesuffix("]"), ",") if bracket else []
    name = name.strip().lower()
    if depth > _MAX_DEPTH:
        return {}
    if len(alternatives) > 1:
        return _union([_of_type(item, depth + 1) for item in alternatives])
    if name in ("union", "optional"):
        return _union([_of_type(item, depth + 1) for item in inside])
    kind = _TYPES.get(name)
    if kind is None:
        return {}
    schema: Schema = {"type": kind}
    parts = [_of_type(item, depth + 1) for item in inside if item != "..."]
    if kind == "array" and parts and all(part == parts[0] for part in parts) and parts[0]:
        schema["items"] = parts[0]
    if kind == "object" and len(parts) == 2 and parts[1]:
        schema["additionalProperties"] = parts[1]
    return schema


def _union(schemas: list[Schema]) -> Schema:
    """A list of types where every branch is a plain type, otherwise `anyOf`; a branch that allows any value allows all."""
    distinct = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
    if not distinct or any(not schema for schema in distinct):
        return {}
    if len(distinct) == 1:
        return distinct[0]
    if all(schema.keys() == {"type"} and isinstance(schema["type"], str) for schema in distinct):
        return {"type": [schema["type"] for schema in distinct]}
    return {"anyOf": distinct}


def _split(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators that are outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[({") - (character in "])}")
        if character == separator and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]
