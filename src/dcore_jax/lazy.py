"""Front doors that load a module when one of its names is first used: reading a config needs no data loader."""

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package's `__init__.py` (PEP 562).

    Args:
      package: its `__name__`.
      homes: public name -> the submodule it lives in, as `{"train": "train"}`.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return __getattr__


def keep_old_module(package: str, old: str, new: str) -> None:
    """Lets `from package.old import name` go on working after the module was renamed to `package.new`; loads it when asked."""
    alias = types.ModuleType(f"{package}.{old}", f"The earlier name of {package}.{new}.")
    alias.__getattr__ = lambda name: getattr(importlib.import_module(f"{package}.{new}"), name)  # type: ignore[method-assign]
    sys.modules[alias.__name__] = alias
