"""Other projects' tool environments behind the protocol of the tool world: BFCL's multi-turn classes and tau-bench's tools.

Their packages are imported when a task first needs them. Calls are made from parsed arguments, by name, on what the
packages themselves list as tools: no text is evaluated, and nothing whose name begins with an underscore can be called.
"""

import copy
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dcore_jax.calls import Call
from dcore_jax.distill.ask import Rejected
from dcore_jax.errors import UserError
from dcore_jax.toolworld import Environment, Observation
from dcore_jax.toolworld.task import output_text


@dataclass(frozen=True)
class BFCLTask:
    """A state of BFCL's multi-turn classes (package `bfcl-eval`), as its files name it."""

    involved_classes: tuple[str, ...]  # as GorillaFileSystem
    initial_config: Mapping[str, Any] = field(default_factory=dict)  # by class


@dataclass(frozen=True)
class TauTask:
    """The initial database of a tau-bench domain (package `tau_bench`)."""

    domain: str  # retail or airline


class FunctionTools:
    """Functions by name as an environment; `tools_of(task)` makes them, with a state of their own, at each reset."""

    done = False  # what a benchmark's task wants is for its own checker to say

    def __init__(self, tools_of: Callable[[Any], Mapping[str, Callable[..., Any]]]):
        self._tools_of = tools_of
        self._tools: Mapping[str, Callable[..., Any]] = {}
        self._seen: list[Observation] = []

    def reset(self, task: Any) -> None:
        self._tools, self._seen = self._tools_of(task), []

    def call(self, call: Call) -> Observation:
        """Runs the function; an unknown name, wrong arguments and whatever it raises are observations."""
        function = self._tools.get(call.name)
        if function is None:
            observation = _error(f"no tool {str(call.name)[:80]!r}")
        else:
            try:
                result = function(**copy.deepcopy(dict(call.arguments)))
                observation = Observation(
                    result if isinstance(result, str) else json.dumps(result, default=str)
                )
            except Exception as error:
                observation = _error(f"{call.name[:80]} failed: {type(error).__name__}: {error}"[:400])
        self._seen.append(observation)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        return tuple(self._seen)


def adapter_for(task: Any) -> Environment:
    """The environment for a task of another project.

    Raises:
      UserError: a task that nothing here can act in.
    """
    if isinstance(task, BFCLTask):
        return FunctionTools(bfcl_tools)
    if isinstance(task, TauTask):
        return FunctionTools(tau_tools)
    raise UserError(
        f"a sample's task is a {type(task).__name__}; execute acts in Task, BFCLTask and TauTask, else use --act replay"
    )


def bfcl_tools(task: BFCLTask) -> dict[str, Callable[..., Any]]:
    """The public methods of fresh instances of the task's classes, by name.

    Raises:
      UserError: a missing package, a class that BFCL does not have.
      Rejected: a state that a class cannot load; stage `act`.
    """
    settings = _imported("bfcl_eval.constants.executable_backend_config", "bfcl-eval")
    tools: dict[str, Callable[..., Any]] = {}
    for name in task.involved_classes:
        if name not in settings.CLASS_FILE_PATH_MAPPING:
            raise UserError(
                f"BFCL has no class {name!r}; it has {', '.join(sorted(settings.CLASS_FILE_PATH_MAPPING))}"
            )
        instance = getattr(importlib.import_module(settings.CLASS_FILE_PATH_MAPPING[name]), name)()
        if name not in settings.STATELESS_CLASSES:
            try:
                instance._load_scenario(copy.deepcopy(dict(task.initial_config.get(name, {}))))
            except Exception as error:
                reason = f"{name} cannot load the task's initial_config ({type(error).__name__})"
                raise Rejected("act", reason, str(error)) from None
        methods = inspect.getmembers(instance, inspect.ismethod)
        tools |= {method: function for method, function in methods if not method.startswith("_")}
    return tools


def tau_tools(task: TauTask) -> dict[str, Callable[..., Any]]:
    """The tools of the domain, each bound to one fresh copy of its database."""
    if not task.domain.isidentifier():
        raise UserError(f"tau-bench has no domain {task.domain!r}; it has retail and airline")
    data = _imported(f"tau_bench.envs.{task.domain}.data", "tau_bench").load_data()
    listed = _imported(f"tau_bench.envs.{task.domain}.tools", "tau_bench").ALL_TOOLS

    def bound(tool: Any) -> Callable[..., Any]:
        return lambda **arguments: tool.invoke(data=data, **arguments)

    return {tool.get_info()["function"]["name"]: bound(tool) for tool in listed}


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"to execute such a task install {package} ({error}), or use --act replay") from None


def _error(message: str) -> Observation:
    return Observation(output_text({"error": message}), message)
