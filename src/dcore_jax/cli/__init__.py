"""The `dcore` command: one word for each recipe, and what helps to run them. `scripts/*.py` are the same doors."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from dcore_jax.errors import UserError

# Command -> its line in `dcore --help`; each is a module of this package with `run(arguments)`.
COMMANDS = {
    "sft": "packed supervised fine-tuning on a mesh",
    "rl": "DA-GRPO and its relatives on tool rewards",
    "distill": "self-distillation: seeds to a verified SFT corpus",
    "plan": "what a recipe needs on a TPU or GPU: memory, time, price, before one is rented",
    "preview": "data as the model will see them, before anything is trained",
    "export": "a run's checkpoint as a Hugging Face folder",
    "eval": "a benchmark's own questions and checkers, for a model or for stored answers",
    "lazy": "how much of a model's reasoning is lazy, from stored outputs or rollouts",
    "chat": "talk to a checkpoint, with tools",
    "serve": "an OpenAI-compatible server over a checkpoint",
    "demo": "the whole method at nano size, on any machine",
    "configs": "list the configs that travel with the package, or print one",
    "bench": "the kernels on this machine's device, beside its limit",
    "doctor": "what this machine can do, and what to install for the rest",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `dcore <command> <options>`; a UserError becomes `error: <one line>` on stderr and exit status 1."""
    # transformers serves tokenizers here; that it finds no torch is no news.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    run_command(lambda: _dispatch(list(sys.argv[1:] if arguments is None else arguments)))


def run_command(command: Callable[[], None]) -> None:
    """Runs `command`; a UserError is one line and exit status 1, Ctrl-C one line and 130, all else keeps its traceback.

    So is the loss of another process of the same run. A process of several that ends with an error does not wait for the others.
    """
    try:
        command()
    except UserError as error:
        _fail(" ".join(str(error).split()), 1)
    except KeyboardInterrupt:
        _fail("interrupted; start the same line again to go on from the last checkpoint", 130)
    except BrokenPipeError:  # `dcore configs | head`
        sys.stderr.close()
        sys.exit(141)
    except RuntimeError as error:
        if "jax" not in sys.modules:
            raise
        from dcore_jax.processes import lost_process

        line = lost_process(error)
        if line is None:
            raise
        _fail(line, 1)


def _fail(line: str, status: int) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    if "jax" in sys.modules:
        from dcore_jax.processes import leave

        leave(status)
    sys.exit(status)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        from dcore_jax import __version__

        print(f"dcore_jax {__version__}")
        return
    command, *rest = arguments
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"dcore has no command {command!r}; {hint}")
    importlib.import_module(f"dcore_jax.cli.{command}").run(rest)


def _overview() -> str:
    lines = ["usage: dcore COMMAND [options]        dcore COMMAND --help", ""]
    lines += [f"  {name:<9}{text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "Without a model, sft, rl and distill run the embedded nano Qwen3 in the tool world, on a CPU.",
    ]
    return "\n".join(lines)
