"""Runs first in processes that have this folder on their path: torch, installed for the tests' references alone, is not found."""

import sys
from importlib.machinery import PathFinder


class WithoutTorch(PathFinder):
    """The ordinary finder, for an environment without torch."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)


sys.meta_path[:] = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
