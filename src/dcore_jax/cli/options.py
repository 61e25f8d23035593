"""Command line options made from a recipe's config dataclass.

Each field is an option; the string under it is its text in `--help`, its group is the dataclass it stands in. The defaults
that `--help` shows are those that apply: the config file's (`--config`, or the recipe's default), completed by the options that
decide others (an algorithm's name brings its preset's numbers). An option that would change nothing is not offered, and refused
by name when it is given.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from dcore_jax.config import config_from_dict, find_config, read_yaml
from dcore_jax.errors import UserError

C = TypeVar("C")


def parse_options(
    kind: type[C],
    arguments: Sequence[str],
    *,
    description: str,
    default_config: Callable[[Sequence[str]], str | Path | None],
    program: str | None = None,
) -> C:
    """The config of a command: its `--config` file, or `default_config(arguments)`, changed by the other options.

    `kind` may have four hooks: `DECIDING`, dotted names of options that decide others' defaults; `ALIASES`, dotted names to
    shorter ones; `RENAMED`, earlier spellings to those of now; and `unused_options()`, the dotted names (to reasons) of fields
    that change nothing under this config.

    Raises:
      UserError: a config file that is missing, no YAML, or has an unknown key or a value of the wrong type; an option given
        twice, or one that changes nothing.
      SystemExit: status 2 for an option that does not exist, after naming the nearest; 0 after `--help`.
    """
    arguments = [_renamed(argument, getattr(kind, "RENAMED", {})) for argument in arguments]
    refuse_repeated_flags(kind, arguments)
    if "--config" in arguments and arguments[-1] == "--config":
        raise UserError("--config needs a file name")
    named = _value_of(arguments, "--config") or default_config(arguments)
    default = _default(kind, arguments, named)
    unused = _unused(default)
    for flag in _given(arguments):
        reason = unused.get(flag) or unused.get(flag.rpartition(".")[0])
        if reason:
            raise UserError(f"--{flag} is no option here: {reason}")
    options = _option_type(kind, default, unused, _aliases(kind), config=str(named) if named else None)
    parsed = tyro.cli(options, args=list(arguments), description=description, prog=program)
    return _config(kind, default, parsed)


def nano_or_paper(name: str) -> Callable[[Sequence[str]], str | None]:
    """A `default_config`: the embedded preset `name`, unless a model is named: then the defaults are the paper's."""

    def default_config(arguments: Sequence[str]) -> str | None:
        model = _value_of(arguments, "--model")
        return name if model in (None, "nano") else None

    return default_config


def describe(command: str, summary: str, *further: str) -> str:
    """The head of a recipe's `--help`: short paragraphs, since the parser does not wrap them."""
    shown = f"Defaults shown: {command}_nano's; with --model NAME the paper's; with --config its own."
    return "\n\n".join([summary, shown, *further])


def refuse_repeated_flags(kind: Any, arguments: Sequence[str]) -> None:
    """Raises UserError for an option of the dataclass `kind` that is given twice: the parser would forget the first silently."""
    aliases = _aliases(kind)
    known = {"config", *(dotted for dotted, *_ in option_fields(kind)), *aliases.values()}
    seen: set[str] = set()
    for flag in _given(arguments):
        flag = aliases.get(flag, flag)
        if flag in known and flag in seen:
            raise UserError(f"--{flag} is given twice; give it once (a list: --{flag} a b)")
        seen.add(flag)


def option_fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """`(dotted name, type, text)` of every option of a config dataclass, as `optimizer.learning-rate`."""
    hints, texts = get_type_hints(kind), field_texts(kind)
    for field in dataclasses.fields(kind):
        dotted = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from option_fields(hints[field.name], f"{dotted}.")
        else:
            yield dotted, hints[field.name], texts.get(field.name, "")


@functools.cache
def field_texts(kind: Any) -> dict[str, str]:
    """The string literal that stands under each field of a dataclass, by the field's name; inherited ones too."""
    bases: list[Any] = [base for base in reversed(kind.__bases__) if dataclasses.is_dataclass(base)]
    inherited = [field_texts(base) for base in bases]
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {name: text for texts in inherited for name, text in texts.items()}
    for statement, following in zip(definition.body, definition.body[1:]):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def _default(kind: type[C], arguments: Sequence[str], named: str | Path | None) -> C:
    """The config file's values, with the deciding options of the command line put in before defaults are completed."""
    path, aliases = find_config(named) if named else None, _aliases(kind)
    hints = {dotted: hint for dotted, hint, _ in option_fields(kind)}
    try:
        values = dict(read_yaml(path)) if path else {}
        for dotted in getattr(kind, "DECIDING", ()):
            given = _values_of(arguments, f"--{dotted}")
            if given is None and dotted in aliases:
                given = _values_of(arguments, f"--{aliases[dotted]}")
            if given:
                _drop_earlier(values, getattr(kind, "RENAMED", {}), (dotted, aliases.get(dotted)))
            keys = dotted.replace("-", "_").split(".")
            if given and get_origin(hints[dotted]) is tuple:
                _set_nested(values, keys, given)
            elif given:
                choices = get_args(hints[dotted])  # of a Literal; numbers among them are written as text
                value = next((choice for choice in choices if str(choice) == given[0]), given[0])
                if hints[dotted] is int and given[0].isdecimal():
                    value = int(given[0])
                _set_nested(values, keys, value)
        return config_from_dict(kind, values)
    except UserError as error:
        raise UserError(f"{path}: {error}" if path else str(error)) from None


def _set_nested(values: dict[str, Any], keys: list[str], value: Any) -> None:
    key, *rest = keys
    if not rest:
        values[key] = value
        return
    inner = values.get(key, {})
    inner = {"name": inner} if isinstance(inner, str | list) else dict(inner)
    _set_nested(inner, rest, value)
    values[key] = inner


def _drop_earlier(values: dict[str, Any], renamed: Mapping[str, str], now: Sequence[str | None]) -> None:
    """Takes an option's earlier spelling out of a file's values: the command line has given the option."""
    for earlier in (old for old, new in renamed.items() if new in now):
        group, _, key = earlier.partition(".")
        if isinstance(inner := values.get(group), dict):
            values[group] = {name: value for name, value in inner.items() if name != key}


def _unused(config: Any) -> Mapping[str, str]:
    reasons = config.unused_options() if hasattr(config, "unused_options") else {}
    return {name.replace("_", "-"): reason for name, reason in reasons.items()}


def _option_type(
    kind: Any,
    default: Any,
    unused: Mapping[str, str],
    aliases: Mapping[str, str],
    prefix: str = "",
    config: str | None = None,
) -> Any:
    """A plain dataclass with the options of `kind` that are in use, their texts, and the values of `default` as defaults.

    The parser gets this and not `kind` itself, whose own checks belong to the finished config.
    """
    hints, texts = get_type_hints(kind), field_texts(kind)
    fields: list[tuple[str, Any, Any]] = []
    groups: list[tuple[str, Any, Any]] = []
    if not prefix:
        text = "YAML file, or the name of a config that travels with the package (`dcore configs`)."
        fields.append(("config", Annotated[str | None, tyro.conf.arg(help=text)], config))
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], getattr(default, field.name)
        dotted = prefix + field.name.replace("_", "-")
        if dotted in unused:
            continue
        if dataclasses.is_dataclass(hint):
            group = _option_type(hint, value, unused, aliases, f"{dotted}.")
            if dataclasses.fields(group):
                groups.append((field.name, group, dataclasses.field(default_factory=group)))
        else:
            short = (f"--{aliases[dotted]}",) if dotted in aliases else ()
            option = tyro.conf.arg(help=texts.get(field.name), aliases=short)
            fields.append((field.name, Annotated[hint, option], value))
    made = dataclasses.make_dataclass(kind.__name__, fields + groups)
    made.__doc__ = (kind.__doc__ or "").split("\n")[0]
    return made


def _config(kind: Any, default: Any, parsed: Any) -> Any:
    values = {}
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name)
        given = getattr(parsed, field.name, value)
        values[field.name] = _config(type(value), value, given) if dataclasses.is_dataclass(value) else given
    return kind(**values)


def _aliases(kind: Any) -> dict[str, str]:
    """Dotted options to their short spellings: the name of a group is the group's own option (`--engine vllm`)."""
    names = (dotted for dotted, *_ in option_fields(kind) if dotted.count(".") == 1)
    short = {dotted: dotted.removesuffix(".name") for dotted in names if dotted.endswith(".name")}
    return short | getattr(kind, "ALIASES", {})


def _given(arguments: Sequence[str]) -> Iterator[str]:
    """The options on a command line without their dashes and values, spelled with hyphens."""
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument[2:].partition("=")[0].replace("_", "-")
            yield flag


def _renamed(argument: str, earlier: Mapping[str, str]) -> str:
    flag, equals, value = argument.partition("=")
    now = earlier.get(flag.removeprefix("--").replace("_", "-")) if flag.startswith("--") else None
    return f"--{now}{equals}{value}" if now else argument


def _value_of(arguments: Sequence[str], flag: str) -> str | None:
    return next(iter(_values_of(arguments, flag) or ()), None)


def _values_of(arguments: Sequence[str], flag: str) -> list[str] | None:
    """What follows a flag up to the next one; None where it is not given."""
    for i, argument in enumerate(arguments):
        if argument == flag:
            return list(itertools.takewhile(lambda text: not text.startswith("--"), arguments[i + 1 :]))
        if argument.startswith(f"{flag}="):
            return [argument.partition("=")[2]]
    return None
