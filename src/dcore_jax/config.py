"""Frozen dataclasses from YAML files, and back.

A recipe's config is one dataclass with nested ones; an unknown key is an error that suggests the nearest. A field with
`metadata=MAY_CHANGE` may differ when a run is resumed; every other difference is refused by name. cli/options.py makes command
line options of the same dataclasses.

Two conventions shorten files. A group whose first field is `name` may be written as that name alone (`engine: vllm`, or a list
where it takes several: `reward: [dcore_paper, my_rewards.py:score]`). A class
with a `complete(values)` class method fills in what the given keys imply before the rest is checked (`algorithm: grpo` and its
preset's numbers).
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dcore_jax.errors import UserError

C = TypeVar("C")

# The field may change between the first start of a run and its resumption.
MAY_CHANGE = types.MappingProxyType({"may_change": True})


def config_folder() -> Path:
    """The configs that travel with the package: beside this file in a wheel, at the top of a checkout."""
    packaged = Path(__file__).with_name("configs")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def config_names() -> list[str]:
    """Names of the configs that travel with the package, as `--config` takes them."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """A YAML file by its path, or a config that travels with the package by its name (`sft_qwen3_8b`).

    Raises:
      UserError: neither; lists the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = config_folder() / (path.name if path.suffix == ".yaml" else f"{path.name}.yaml")
    if len(path.parts) == 1 and packaged.is_file():
        return packaged
    near = difflib.get_close_matches(path.stem, config_names(), n=3, cutoff=0.3)
    hint = f"did you mean {', '.join(near)}?" if near else "`dcore configs` lists those that have a name"
    raise UserError(f"{name}: no such config file; {hint}")


class _OneKey(yaml.SafeLoader):
    """Refuses a mapping that holds a key twice, of which YAML's own loader silently keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"the key {twice} is given twice (line {node.start_mark.line + 1} on); keep one")
        return super().construct_mapping(node, deep)


def read_config(kind: type[C], path: str | Path) -> C:
    """A config from a YAML file; raises UserError naming the file, the key and the nearest known one."""
    try:
        return config_from_dict(kind, read_yaml(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, `{}` if nothing; raises UserError saying why it cannot be read, without its name."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _OneKey) or {}
    except FileNotFoundError:
        raise UserError("no such config file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"not readable as YAML: {' '.join(str(error).split())}") from None


def config_from_dict(kind: type[C], values: Any, prefix: str = "") -> C:
    """Builds a dataclass from nested dicts, field by field; raises UserError naming the dotted key."""
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'the config'} should hold keys and values, not {values!r}")
    hints = get_type_hints(kind)
    values = complete(values) if (complete := getattr(kind, "complete", None)) else values
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise UserError(f"unknown key {prefix}{key}{hint}")
    return kind(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dicts, lists and scalars that YAML and JSON hold; `config_from_dict` reads them back to an equal config."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))


def write_config(config: Any, path: str | Path) -> None:
    """Writes the effective config as YAML."""
    Path(path).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """`key: old -> new` for every field that differs and is not marked MAY_CHANGE."""
    found = []
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.metadata.get("may_change"):
            continue
        if dataclasses.is_dataclass(before):
            found += differences(before, after, f"{prefix}{field.name}.")
        elif before != after:
            found.append(f"{prefix}{field.name}: {before} -> {after}")
    return found


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, key)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, str | list) and dataclasses.fields(hint)[0].name == "name":
            value = {"name": value}
        return config_from_dict(hint, value, key + ".")  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{key} is {value!r}; choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise UserError(f"{key} should be a list, not {value!r}")
        return tuple(_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(items))
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5 as a string
        except ValueError:
            pass
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # mesh: 8
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"{key} should be {hint.__name__}, not {value!r}")
