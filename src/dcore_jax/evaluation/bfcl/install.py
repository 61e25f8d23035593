"""Installs `bfcl-eval` beside numpy 2: each version in a folder of its own, with the few packages that its checkers need.

`bfcl-eval` pins numpy 1.26.4 and imports the SDK of every vendor that it can ask, so that it cannot be resolved beside JAX. Its
data, checkers and tool classes need none of that: they run from a folder that is on the path of one process only
(worker/adapter.py), once the list of models, which imports the SDKs, is replaced by one that holds what the checkers read of it.
"""

import ast
import shutil
from pathlib import Path

from dcore_jax.atomic import atomic_folder, write_text_atomic
from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.installing import cache_folder, install_into
from dcore_jax.progress import log

# The release that reproduces published v3 scores, and the newest with v4's data (PyPI, Apache-2.0).
RELEASES = {"v3": "2025.6.8", "v4": "2026.3.23"}
# Pinned as the two releases pin them; none of them needs another.
_PACKAGES = (
    "tree_sitter==0.21.3",
    "tree-sitter-java==0.21.0",
    "tree-sitter-javascript==0.21.4",
    "filelock",
    "mpmath==1.3.0",
    "overrides",
    "python-dotenv",
    "tenacity",
    "tqdm",
)
_MODELS = Path("bfcl_eval") / "constants" / "model_config.py"


def default_folder(version: str) -> Path:
    """`$DCORE_BFCL_HOME/<version>`, or `<the user's cache>/dcore_jax/bfcl/<version>`."""
    return cache_folder("DCORE_BFCL_HOME", "bfcl", version)


def is_installed(folder: str | Path, version: str) -> bool:
    """Whether the folder holds the release of this version, whole."""
    return (Path(folder) / f"bfcl_eval-{RELEASES[version]}.dist-info").is_dir()


def install(version: str, folder: str | Path | None = None, *, force: bool = False) -> Path:
    """Installs a version into its folder, unless it is there; returns the folder.

    Args:
      version: `v3` or `v4`.
      folder: None: `default_folder(version)`.
      force: install anew.

    Raises:
      UserError: the package index cannot be reached, or the folder holds something else.
    """
    check_choice("the BFCL version", version, RELEASES)
    target = Path(folder) if folder else default_folder(version)
    if is_installed(target, version) and not force:
        return target
    if force and (target / "bfcl_eval").is_dir():
        shutil.rmtree(target)
    if target.exists() and any(target.iterdir()):
        raise UserError(
            f"{target} holds something else than bfcl-eval {RELEASES[version]}; choose another --bfcl-folder"
        )
    log(f"installing bfcl-eval {RELEASES[version]} into {target} (once; 15 MB)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as unfinished:
        # Without dependencies, which would bring numpy 1 and the SDKs.
        install_into(unfinished, ["--no-deps", f"bfcl-eval=={RELEASES[version]}", *_PACKAGES], "bfcl-eval")
        models = unfinished / _MODELS
        # A new file in its place: uv links the files of its cache, which all environments share.
        write_text_atomic(models, models_without_vendors(models.read_text(encoding="utf-8")))
    return target


def models_without_vendors(source: str) -> str:
    """The module `model_config` with what the checkers read of each model, and without a vendor's package.

    Args:
      source: the released module: dictionaries from a name to `ModelConfig(...)` with literal fields.
    """
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Call):
                fields = {keyword.arg: keyword.value for keyword in value.keywords}
                handler = fields.get("model_handler")
                name = handler.id if isinstance(handler, ast.Name) else ""
                flags = [_flag(fields.get(field)) for field in ("is_fc_model", "underscore_to_dot")]
                lines.append(f"    {key.value!r}: Model({flags[0]}, {flags[1]}, {name!r}),")
    return "\n".join(
        [
            '"""Written by dcore_jax in the place of the list of models that imports every vendor\'s SDK."""',
            "from typing import NamedTuple",
            "",
            "class Model(NamedTuple):",
            "    is_fc_model: bool",
            "    underscore_to_dot: bool",
            "    handler: str",
            "",
            "MODEL_CONFIG_MAPPING = {",
            *lines,
            "}",
            "",
        ]
    )


def _flag(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True
