"""Who answers the calls of a chat: the tool world, or the person who types."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dcore_jax.calls import Call
from dcore_jax.data.malformed import Malformed
from dcore_jax.data.tool_schemas import openai_tools, tool_name
from dcore_jax.errors import UserError, first_line
from dcore_jax.toolworld import TOOLWORLD, Task, ToolWorld, family_names, generate_tasks

_KINDS = ("single", "sequential", "parallel")  # of the tasks whose states are drawn
_MAX_CALLS = 1_000  # of one conversation


@runtime_checkable
class Toolbox(Protocol):
    """The tools of a chat."""

    schemas: tuple[dict[str, Any], ...]

    def reset(self) -> str:
        """Begins again; returns what the person should know of it."""

    def answer(self, call: Call) -> str | None:
        """What the tool answers; None: the person has to."""


@dataclass
class HandTools:
    """Tools that only have a schema, or no tools: the person types what they answer."""

    schemas: tuple[dict[str, Any], ...] = ()

    def reset(self) -> str:
        names = ", ".join(map(tool_name, self.schemas))
        return f"tools: {names}; you type what they answer" if names else "no tools"

    def answer(self, call: Call) -> str | None:
        return None


@dataclass
class WorldTools:
    """The tools of one family of the tool world, run on a state of its own; each reset draws the next state."""

    family: str | None  # None: of whichever family the draw gives
    seed: int = 0
    schemas: tuple[dict[str, Any], ...] = ()
    _world: ToolWorld = field(default_factory=lambda: ToolWorld(max_calls=_MAX_CALLS))
    _drawn: int = 0

    def reset(self) -> str:
        task = self._next_task()
        self._world.reset(task)
        self.schemas = task.tools
        names = ", ".join(map(tool_name, self.schemas))
        state = json.dumps(task.initial_state, ensure_ascii=False)
        return f"tools of {task.family}: {names}\nstate: {state}\nask, for example: {task.query}"

    def answer(self, call: Call) -> str | None:
        return self._world.call(call).content

    def _next_task(self) -> Task:
        families = None if self.family is None else [self.family]
        (task,) = generate_tasks(
            1, seed=self.seed, split="test", kinds=_KINDS, families=families, start=self._drawn
        )
        self._drawn += 1
        return task


def open_tools(name: str, seed: int = 0) -> Toolbox:
    """The toolbox of `--tools`: empty for none, `toolworld` or a family's name, else a JSON file of tool schemas.

    Raises:
      UserError: a file that is not there, is no JSON, or does not hold a list of tools.
    """
    if not name:
        return HandTools()
    if name == TOOLWORLD or name in family_names():
        return WorldTools(None if name == TOOLWORLD else name, seed)
    path = Path(name)
    if not path.is_file():
        known = ", ".join((TOOLWORLD, *family_names()))
        raise UserError(
            f"--tools {name}: no such file, and no family of the tool world; give a JSON file of schemas, or one of {known}"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return HandTools(openai_tools([found] if isinstance(found, dict) else found))
    except (OSError, ValueError, Malformed) as error:
        raise UserError(
            f"--tools {name}: {first_line(error)}; write a JSON list of OpenAI function schemas"
        ) from None
