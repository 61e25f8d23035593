"""The environment protocol of tool use, and the tool world as one.

An environment never raises for what a model does: an unknown tool, a bad argument or a tool's own exception
is an observation with an error, and its size is bounded.
"""

import copy
import json
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dcore_jax.calls import Call, calls_equal
from dcore_jax.toolworld.family import ToolFamily, get_family
from dcore_jax.toolworld.task import Task, output_text
from dcore_jax.toolworld.tool import ToolError, run_tool


@dataclass(frozen=True)
class Observation:
    """What the model gets to read after a call: JSON text, `{"error": ...}` when `error` is set."""

    content: str
    error: str | None = None


@runtime_checkable
class Environment(Protocol):
    """A place where calls have effects. Use: `reset(task)`, then `call` until `done`."""

    def reset(self, task: Task) -> None:
        """Start the task in its initial state; forget everything else."""

    def call(self, call: Call) -> Observation:
        """Run one call. Never raises for what the call holds."""

    def observe(self) -> tuple[Observation, ...]:
        """Every observation since the reset, oldest first."""

    @property
    def done(self) -> bool:
        """Whether nothing more is wanted, or allowed, of the caller."""


class ToolWorld:
    """The tools of a task's family, run in this process on a copy of its state.

    `done` when each reference call has been made (in any order, other calls in between do not matter) or
    `max_calls` calls were made; a call after the last allowed one is an error. An irrelevant task wants no
    call, so it is done at once. Calls and outputs of over `max_chars` characters of JSON are errors. The
    tools do a bounded amount of work on a small state, so there is no clock.
    """

    def __init__(self, *, max_calls: int = 16, max_chars: int = 4096):
        self.max_calls, self.max_chars = max_calls, max_chars
        self._family: ToolFamily | None = None
        self._wanted: list[Call] = []
        self._seen: list[Observation] = []

    def reset(self, task: Task) -> None:
        """Start the task. Raises UserError when its family is not registered."""
        self._family = get_family(task.family)
        self._state = copy.deepcopy(task.initial_state)
        self._wanted = list(task.reference)
        self._seen = []

    def call(self, call: Call) -> Observation:
        """Run one call; a failed one leaves the state as it was. RuntimeError before the first reset."""
        if self._family is None:
            raise RuntimeError("ToolWorld.reset(task) comes before the first call")
        observation = self._run(self._family, call)
        self._seen.append(observation)
        if observation.error is None:
            match = next((i for i, wanted in enumerate(self._wanted) if calls_equal([call], [wanted])), None)
            if match is not None:
                self._wanted.pop(match)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        """Every observation since the reset, oldest first."""
        return tuple(self._seen)

    @property
    def solved(self) -> bool:
        """Whether each reference call has been made."""
        return not self._wanted

    @property
    def done(self) -> bool:
        """Whether the task is solved or no call is left."""
        return self.solved or len(self._seen) >= self.max_calls

    def _run(self, family: ToolFamily, call: Call) -> Observation:
        if len(self._seen) >= self.max_calls:
            return _error(f"no calls left after {self.max_calls}")
        tool = family.tool(call.name)
        if tool is None:
            return _error(f"no tool {str(call.name)[:40]!r}")
        try:
            if len(json.dumps(dict(call.arguments))) > self.max_chars:
                return _error(f"arguments of over {self.max_chars} characters")
            state = copy.deepcopy(self._state)
            content = output_text(run_tool(tool, state, call.arguments))
        except ToolError as error:
            return _error(str(error)[:200])
        except Exception as error:  # whatever a tool's function raises is the model's to read
            return _error(f"{tool.name} failed: {type(error).__name__}: {error}"[:200])
        if len(content) > self.max_chars:
            return _error(f"{tool.name}: output of over {self.max_chars} characters")
        self._state = state
        return Observation(content)


def _error(message: str) -> Observation:
    return Observation(output_text({"error": message}), message)
