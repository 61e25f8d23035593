"""A small world of stateful tools: seeded tasks, sample data, and an environment to act in."""

from dcore_jax.toolworld import families as families  # registers the library's own families
from dcore_jax.toolworld.environment import Environment, Observation, ToolWorld
from dcore_jax.toolworld.family import (
    Output,
    Plan,
    Policy,
    Step,
    ToolFamily,
    family_names,
    get_family,
    register,
)
from dcore_jax.toolworld.generate import generate_tasks
from dcore_jax.toolworld.records import opening_messages, to_record, write_jsonl
from dcore_jax.toolworld.spec import TOOLWORLD, ToolWorldSpec, is_spec, parse_spec
from dcore_jax.toolworld.task import DEFAULT_KINDS, KINDS, MAX_SUBTASKS, REFUSAL, SPLITS, Task
from dcore_jax.toolworld.tool import Tool, ToolError, object_schema

__all__ = [
    "DEFAULT_KINDS",
    "KINDS",
    "MAX_SUBTASKS",
    "REFUSAL",
    "SPLITS",
    "TOOLWORLD",
    "Environment",
    "Observation",
    "Output",
    "Plan",
    "Policy",
    "Step",
    "Task",
    "Tool",
    "ToolError",
    "ToolFamily",
    "ToolWorld",
    "ToolWorldSpec",
    "family_names",
    "generate_tasks",
    "get_family",
    "is_spec",
    "object_schema",
    "opening_messages",
    "parse_spec",
    "register",
    "to_record",
    "write_jsonl",
]
