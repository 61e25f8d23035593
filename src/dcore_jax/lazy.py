"""Front doors that load a module when one of its names is first used: reading a config needs no data loader."""

import importlib
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
