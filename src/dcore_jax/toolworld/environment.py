"""The environment protocol of tool use, and the tool world as an environment.

An environment never raises for what a model does: an unknown tool, a bad argument or a tool's own exception is an
observation with an error, and observations are limited in size.
"""

import json
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from dcore_jax.calls import JSON, Call, calls_equal
from dcore_jax.toolworld.family import get_family
from dcore_jax.toolworld.task import Task, output_text
from dcore_jax.toolworld.tool import Tool, ToolError, copy_state, run_tool


@dataclass(frozen=True)
class Observation:
    """A tool's answer as the model reads it: JSON text, `{"error": ...}` when `error` is set."""

    content: str
    error: str | None = None


def error_observation(message: str) -> Observation:
    """The observation of a call that failed."""
    return Observation(output_text({"error": message}), message)


@runtime_checkable
class Environment(Protocol):
    """Tools with state: `reset(task)`, then `call` until `done`."""

    def reset(self, task: Task) -> None:
        """Starts the task in its initial state; forgets everything else."""

    def call(self, call: Call) -> Observation:
        """Runs one call. Never raises for what the call holds."""

    def observe(self) -> tuple[Observation, ...]:
        """Every observation since the reset, oldest first."""

    @property
    def done(self) -> bool:
        """Whether no further call is needed, or allowed."""


class ToolWorld:
    """The tools that a task offers, run in this process on a copy of its state; those of other families only say so.

    `done` when each reference call has been made (in any order, other calls in between do not matter) or
    `max_calls` calls were made; a call after the last allowed one is an error. An irrelevant task has no
    reference call, so it is done at once. Calls and outputs of over `max_chars` characters of JSON are errors. The
    tools do a bounded amount of work on a small state, so there is no timeout.
    """

    def __init__(self, *, max_calls: int = 16, max_chars: int = 4096):
        self.max_calls, self.max_chars = max_calls, max_chars
        self._tools: dict[str, Tool | None] | None = (
            None  # by name as offered; None: a tool of another family
        )
        self._remaining: list[Call] = []
        self._observations: list[Observation] = []

    def reset(self, task: Task) -> None:
        """Starts the task. Raises UserError when its family is not registered."""
        family = get_family(task.family)
        own = {name: tool for tool in family.tools for name in (tool.name, tool.synonym) if name}
        offered = [str(tool["function"]["name"]) for tool in task.tools]
        self._tools = {name: replace(own[name], name=name) if name in own else None for name in offered}
        self._state = copy_state(task.initial_state)
        self._remaining = list(task.reference)
        self._observations = []

    def call(self, call: Call) -> Observation:
        """Runs one call; a failed one leaves the state as it was. Raises RuntimeError before the first reset."""
        if self._tools is None:
            raise RuntimeError("ToolWorld.reset(task) comes before the first call")
        observation = self._run(self._tools, call)
        self._observations.append(observation)
        if observation.error is None:
            match = next((i for i, left in enumerate(self._remaining) if calls_equal([call], [left])), None)
            if match is not None:
                self._remaining.pop(match)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        """Every observation since the reset, oldest first."""
        return tuple(self._observations)

    @property
    def state(self) -> JSON:
        """The state after the calls so far; a copy."""
        return copy_state(self._state)

    @property
    def solved(self) -> bool:
        """Whether each reference call has been made."""
        return not self._remaining

    @property
    def done(self) -> bool:
        """Whether the task is solved or no call is left."""
        return self.solved or len(self._observations) >= self.max_calls

    def _run(self, tools: dict[str, Tool | None], call: Call) -> Observation:
        if len(self._observations) >= self.max_calls:
            return error_observation(f"no calls left after {self.max_calls}")
        if call.name not in tools:
            return error_observation(f"no tool {str(call.name)[:40]!r}")
        tool = tools[call.name]
        if tool is None:
            return error_observation(f"{call.name} finds nothing here")
        try:
            if len(json.dumps(dict(call.arguments))) > self.max_chars:
                return error_observation(f"arguments of over {self.max_chars} characters")
            state = copy_state(self._state)
            content = output_text(run_tool(tool, state, call.arguments))
        except ToolError as error:
            return error_observation(str(error)[:200])
        except Exception as error:  # a tool's function may raise anything: the model reads it
            return error_observation(f"{tool.name} failed: {type(error).__name__}: {error}"[:200])
        if len(content) > self.max_chars:
            return error_observation(f"{tool.name}: output of over {self.max_chars} characters")
        self._state = state
        return Observation(content)
