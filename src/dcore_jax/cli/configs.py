"""`dcore configs`: the configs that travel with the package."""

from collections.abc import Sequence

from dcore_jax.config import config_folder, config_names, find_config

USAGE = """usage: dcore configs [NAME]

Lists the configs that travel with the package, or prints one: `dcore sft --config NAME` uses it,
`dcore configs NAME > mine.yaml` makes a copy to change."""


def run(arguments: Sequence[str]) -> None:
    """Prints the list, or the file of the named config."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE)
    elif arguments:
        print(find_config(arguments[0]).read_text(encoding="utf-8"), end="")
    else:
        names = config_names()
        width = max(map(len, names))
        for name in names:
            first = (config_folder() / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
            print(f"{name:<{width}}  {first.removeprefix('#').strip()}")
