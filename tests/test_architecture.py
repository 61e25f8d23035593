"""The floors of the house, read from the imports: nothing imports upwards, in a circle, or from another recipe."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dcore_jax"
# From the ground up; a room may import from its own floor and from those below it.
FLOORS = [
    {"errors", "lazy", "atomic", "dtypes", "config", "progress", "calls", "mesh", "processes", "target"}
    | {"kernels", "models", "weights", "checkpoint", "metrics"},
    {"data", "regions", "rewards", "advantages", "losses", "algorithms", "toolworld", "engines", "nano", "training"}
    | {"lora", "player", "preview", "report"},
    {"sft", "rl", "distill", "evaluation", "chat", "serve", "plots", "plots_rl"},
    {"aot"},
    {"plan"},
    {"cli"},
]  # fmt: skip
RECIPES = {"sft", "rl", "distill", "evaluation"}
# The nano base is an ordinary SFT run that the other recipes have made for them; see docs/architecture.md.
EXCEPTIONS = {("rl", "dcore_jax.sft.base"), ("distill", "dcore_jax.sft.base")}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, `from dcore_jax import x` as dcore_jax.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dcore_jax")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcore_jax"):
            if node.module == "dcore_jax":
                found |= {f"dcore_jax.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def files() -> dict[str, Path]:
    paths = (path for path in PACKAGE.rglob("*.py") if "worker" not in path.parts)
    return {".".join(("dcore_jax", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in paths}


FILES = {name: path for name, path in files().items() if name != "dcore_jax.__init__"}
EDGES = {name: imports_of(path) for name, path in FILES.items()}
PUBLIC = {
    "dcore_jax.load_hf",
    "dcore_jax.export_hf",
    "dcore_jax.__version__",
}  # of the top, loaded when called


def test_every_room_has_a_floor():
    assert {room(name) for name in FILES} == set().union(*FLOORS)


def test_nothing_imports_upwards():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    upwards = {
        (importer, imported)
        for importer, found in EDGES.items()
        for imported in found - PUBLIC
        if floor[room(imported)] > floor[room(importer)]
    }
    assert not upwards


def test_no_recipe_imports_another_but_for_the_nano_base():
    across = {
        (room(importer), imported)
        for importer, found in EDGES.items()
        for imported in found - PUBLIC
        if room(importer) in RECIPES and room(imported) in RECIPES - {room(importer)}
    }
    assert across == EXCEPTIONS


def test_rooms_import_in_no_circle():
    graph = defaultdict(set)
    for importer, found in EDGES.items():
        graph[room(importer)] |= {room(name) for name in found - PUBLIC} - {room(importer)}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join((*path, name))}"
        if name not in done:
            for following in sorted(graph[name]):
                visit(following, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("name", ["models", "weights", "kernels", "losses", "advantages"])
def test_the_arithmetic_imports_neither_grain_nor_torch_nor_vllm(name):
    for module, path in FILES.items():
        if room(module) != name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {part.split(".")[0] for part in names} & {"grain", "torch", "vllm"}, module


def test_what_computes_imports_nothing_that_logs():
    for module in ("sft.step", "rl.step", "rl.batch", "training.state", "training.optimizer"):
        found = {room(name) for name in EDGES[f"dcore_jax.{module}"]}
        assert not found & {"metrics", "progress", "plots", "plots_rl"}, module


def test_files_stay_under_400_lines_and_say_what_they_hold():
    for module, path in FILES.items():
        assert len(path.read_text().splitlines()) <= 400, module
        assert path.stem not in ("utils", "common", "helpers", "misc"), module


# Names that a reader would not have searched for, and what replaced them.
REPLACED = {
    "Ill": "ServerUnavailable",
    "heal": "recover", "_until_well": "_recover", "keeper": "supervisor", "last_words": "last_error_line",
    "_look_at": "_discover_model", "_first_contact": "_wait_until_serving", "Seen": "EngineLogprobs", "wish": "params",
    "Voice": "ServedModel", "open_voice": "open_model", "Speaker": "ModelRole", "Ends": "OutcomeCounts", "Chosen": "HashSample",
    "Lengths": "LengthHistogram", "Said": "ParsedMessage", "Recorded": "ReplayEnvironment", "Bounded": "TimeLimitedEnvironment",
    "only_run_in": "lock_run_folder", "remember_config": "record_run", "refuse_another_config": "check_config_unchanged",
    "sigterm": "preemption_signal", "everywhere": "replicated", "_put": "to_device",
    "say": "log", "count_mask": "denominator_mask",
    "tokens_to": "write_token_entropy", "evaluated": "log_evaluation", "mend": "hint", "algorithm_fields": "algorithm",
}  # fmt: skip


def test_names_are_the_fields_own():
    found = set()
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, field, None) for field in ("id", "attr", "arg", "name")}
            found |= {(module, name) for name in names & set(REPLACED) if isinstance(name, str)}
    assert not found, {name: REPLACED[name] for _, name in found}
