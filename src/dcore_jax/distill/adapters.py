"""Adapters of other projects' tool environments to our protocol: BFCL's multi-turn classes and tau-bench's tools.

Their packages are imported when a task first needs them. A call runs one of the functions that the package itself lists
as tools, by name and with parsed arguments: no text is evaluated, and names that begin with an underscore are not tools.
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
from dcore_jax.toolworld.environment import error_observation


@dataclass(frozen=True)
class BFCLTask:
    """The initial state of BFCL's multi-turn classes (package `bfcl-eval`), in the fields of BFCL's files."""

    involved_classes: tuple[str, ...]  # such as GorillaFileSystem
    initial_config: Mapping[str, Any] = field(default_factory=dict)  # by class


@dataclass(frozen=True)
class TauTask:
    """The initial database of a tau-bench domain (package `tau_bench`)."""

    domain: str  # retail or airline


class FunctionEnvironment:
    """Functions by name as an environment.

    Args:
      make_tools: from a task to its functions, with a fresh state; called at each reset.
    """

    done = False  # whether a benchmark's task is solved is decided by the benchmark's own checker

    def __init__(self, make_tools: Callable[[Any], Mapping[str, Callable[..., Any]]]):
        self._make_tools = make_tools
        self._tools: Mapping[str, Callable[..., Any]] = {}
        self._observations: list[Observation] = []

    def reset(self, task: Any) -> None:
        """Starts the task with fresh tools. Raises what `make_tools` raises."""
        self._tools, self._observations = self._make_tools(task), []

    def call(self, call: Call) -> Observation:
        """Runs the function of that name; an unknown name, wrong arguments and what it raises are observations with an error."""
        function = self._tools.get(call.name)
        if function is None:
            observation = error_observation(f"no tool {str(call.name)[:80]!r}")
        else:
            try:
                result = function(**copy.deepcopy(dict(call.arguments)))
                observation = Observation(
                    result if isinstance(result, str) else json.dumps(result, default=str)
                )
            except Exception as error:
                observation = error_observation(
                    f"{call.name[:80]} failed: {type(error).__name__}: {error}"[:400]
                )
        self._observations.append(observation)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        """Every observation since the reset, oldest first."""
        return tuple(self._observations)


def adapter_for(task: Any) -> Environment:
    """The environment of another project's task.

    Raises:
      UserError: a task of a type without an adapter.
    """
    if isinstance(task, BFCLTask):
        return FunctionEnvironment(bfcl_tools)
    if isinstance(task, TauTask):
        return FunctionEnvironment(tau_tools)
    raise UserError(
        f"a sample's task is a {type(task).__name__}; execute acts in Task, BFCLTask and TauTask, else use --act replay"
    )


def bfcl_tools(task: BFCLTask) -> dict[str, Callable[..., Any]]:
    """The public methods of fresh instances of the task's classes, by name.

    Raises:
      UserError: a missing package, a class that BFCL does not have.
      Rejected: a state that a class cannot load; stage `act`.
    """
    settings = _import_module("bfcl_eval.constants.executable_backend_config", "bfcl-eval")
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
    """The tools of the domain by name, bound to one fresh copy of its database.

    Raises:
      UserError: a domain that does not exist, a missing package.
    """
    if not task.domain.isidentifier():
        raise UserError(f"tau-bench has no domain {task.domain!r}; it has retail and airline")
    data = _import_module(f"tau_bench.envs.{task.domain}.data", "tau_bench").load_data()
    all_tools = _import_module(f"tau_bench.envs.{task.domain}.tools", "tau_bench").ALL_TOOLS

    def bind(tool: Any) -> Callable[..., Any]:
        return lambda **arguments: tool.invoke(data=data, **arguments)

    return {tool.get_info()["function"]["name"]: bind(tool) for tool in all_tools}


def _import_module(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"to execute such a task install {package} ({error}), or use --act replay") from None
