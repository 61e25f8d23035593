"""A reward of the user's own: a function in a file, `my_rewards.py:score`, from `RewardInput` to a number or named parts."""

import copy
import difflib
import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError, first_line
from dcore_jax.rewards.reward import Reward, RewardInput, sum_of

# Beyond it float32, in which advantages are computed, could not hold the square of a reward.
LARGEST = 1e15


class CustomReward:
    """The reward that a function of a file gives.

    It is the user's code: whatever it raises or returns is told as a `UserError` that names the function, the line in its file
    and the row that was scored. Names of parts are those of its first result.
    """

    def __init__(self, spec: str, path: Path, function: Callable[[RewardInput], Any], sha256: str):
        self.spec, self.sha256 = spec, sha256
        self.name = spec.rpartition(":")[2]
        self._path, self._function = path, function
        self._parts: tuple[str, ...] | None = None

    def __call__(self, given: RewardInput) -> Reward:
        """The reward of one response: a number is a part of the function's name.

        Raises:
          UserError: an exception in the function; a result that is no finite number or mapping from names to such; other names
            of parts than before.
        """
        own = replace(  # what it changes, it changes for itself
            given,
            messages=copy.deepcopy(given.messages),
            tools=copy.deepcopy(given.tools),
            reference=copy.deepcopy(given.reference),
        )
        try:
            result = self._function(own)
            parts = dict(result) if isinstance(result, Mapping) else {self.name: result}
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"reward {self.spec} failed{_line_of(error, self._path)} on {_origin(given)}: {what}"
            ) from error
        numbers = {name: self._number(name, value, given) for name, value in parts.items()}
        self._check_names(numbers, given)
        return sum_of(numbers, given.parsed.error)

    def _number(self, name: Any, value: Any, given: RewardInput) -> float:
        part = "" if name == self.name else f" as part {name!r}"
        try:
            if isinstance(value, str | bytes) or getattr(value, "ndim", None):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise self._refused(given, f"{value!r:.60} ({type(value).__name__}){part}") from None
        if not math.isfinite(number) or abs(number) > LARGEST:
            raise self._refused(given, f"{number}{part}")
        return number

    def _check_names(self, parts: Mapping[Any, float], given: RewardInput) -> None:
        for name in parts:
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                raise self._refused(given, f"a part named {name!r:.60}")
        if not parts:
            raise self._refused(given, "no part")
        names = tuple(sorted(parts))
        if self._parts is None:
            self._parts = names
        elif names != self._parts:
            raise UserError(
                f"reward {self.spec}{_defined_at(self._function)} returned the parts {', '.join(names)} for {_origin(given)} and "
                f"{', '.join(self._parts)} before; return the same names each time, 0.0 where one does not apply"
            )

    def _refused(self, given: RewardInput, returned: str) -> UserError:
        return UserError(
            f"reward {self.spec}{_defined_at(self._function)} returned {returned} for {_origin(given)}; return a finite number "
            f"of at most {LARGEST:g}, or a dict from names to such numbers"
        )


def is_file_spec(name: str) -> bool:
    """Whether a reward's name is a function in a file, `my_rewards.py:score`."""
    path, colon, function = name.rpartition(":")
    return bool(colon) and path.endswith(".py") and function.isidentifier()


def load_reward(spec: str) -> CustomReward:
    """The reward `my_rewards.py:score`. The file is executed once; it may import modules that lie beside it.

    Raises:
      UserError: no such file or function, a file that cannot be executed, a function that does not take one argument.
    """
    name, _, wanted = spec.rpartition(":")
    path = Path(name).expanduser().resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"reward {spec}: {name} cannot be read ({error.strerror})") from None
    sha256 = hashlib.sha256(source).hexdigest()
    module = _execute(spec, path, source, sha256)
    function = getattr(module, wanted, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isroutine(value) and key[0] != "_"]
        near = difflib.get_close_matches(wanted, own, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own) or 'none'}"
        raise UserError(f"reward {spec}: {name} has no function {wanted}; {hint}")
    try:
        inspect.signature(function).bind(RewardInput(""))
    except TypeError:
        raise UserError(
            f"reward {spec}{_defined_at(function)}: {wanted} must take one argument, the RewardInput"
        ) from None
    except ValueError:  # a built-in without a signature: its first call will tell
        pass
    return CustomReward(spec, path, function, sha256)


def _execute(spec: str, path: Path, source: bytes, sha256: str) -> Any:
    """The module made of `source`, which is what was hashed, under a name that no other module has."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    loader = importlib.util.spec_from_file_location(f"dcore_jax_reward_{path.stem}_{sha256[:12]}", path)
    assert loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"reward {spec}: the file cannot be executed{_line_of(error, path)}: {what}"
        ) from error
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """The innermost line of the user's file that an exception went through, as ` at my_rewards.py:7`."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f" at {path.name}:{lines[-1]}" if lines else ""


def _defined_at(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else ""


def _origin(given: RewardInput) -> str:
    return given.origin or "a response without origin"
