"""ACEBench (arXiv 2501.12851) from the user's checkout: its questions, result files that its `eval_main.py` reads, its scores.

The questions and the wording of the prompts are read from the checkout and never copied. The categories of one turn are asked;
those with an agent (multi_step, multi_turn) need ACEBench's own simulators, and are scored from result files alone.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcore_jax.calls import Call, render_calls, split_thought
from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.summary import Item

_WORKER = Path(__file__).parent / "harness" / "worker" / "acebench_worker.py"
LANGUAGES = ("en", "zh")
_SECONDS = 1800.0
# The fixed sentences that its checker looks for in the special categories, as its prompts dictate them.
_SPECIAL = {
    "special_incomplete": "Missing necessary parameters ({values}) for the api ({name})",
    "special_error_param": "There is incorrect value ({values}) for the parameters ({name}) in the conversation history.",
    "special_irrelevant": "Due to the limitations of the function, I cannot solve this problem.",
}


class Question(NamedTuple):
    """One question of a category."""

    id: str
    category: str
    messages: tuple[Mapping[str, str], ...]
    reference: str  # what a perfect model says


def categories_of(checkout: Path, named: Sequence[str]) -> list[str]:
    """The categories of names such as `normal`, `special` or `normal_atom_bool`, by the checkout's own `category.py`.

    Raises:
      UserError: no checkout of ACEBench, or an unknown name.
    """
    groups = _literal(checkout / "category.py", "ACE_DATA_CATEGORY")
    every = list(dict.fromkeys(category for group in groups.values() for category in group))
    chosen: list[str] = []
    for name in named:
        check_choice("ACEBench category", name, [*groups, *every])
        chosen += groups.get(name, [name])
    return list(dict.fromkeys(chosen))


def read_questions(checkout: Path, category: str, language: str) -> list[Question]:
    """The questions of a category with their prompts.

    Raises:
      UserError: a checkout without that category, or a category of agents.
    """
    if category.startswith("agent"):
        raise UserError(
            f"{category} is played by ACEBench's own simulators: run its generate.py (against `dcore serve`), then --predictions"
        )
    data = checkout / "data_all" / f"data_{language}"
    rows = _lines(data / f"data_{category}.json")
    answers = _lines(data / "possible_answer" / f"data_{category}.json")
    kind = "SPECIAL" if "special" in category else "PREFERENCE" if "preference" in category else "NORMAL"
    source = checkout / "model_inference" / f"prompt_{language}.py"
    system = _literal(source, f"SYSTEM_PROMPT_FOR_{kind}_DATA_{language.upper()}")
    user = _literal(source, f"USER_PROMPT_{language.upper()}")
    questions = []
    for row, answer in zip(rows, answers, strict=True):
        functions = row["function"]
        if isinstance(functions, dict | str):
            functions = [functions]
        words = {"time": row.get("time", ""), "profile": row.get("profile", ""), "function": functions}
        messages = (
            {"role": "system", "content": system.format(**words)},
            {"role": "user", "content": user.format(question=row["question"])},
        )
        offered = {function["name"] for function in functions if isinstance(function, dict)}
        questions.append(
            Question(row["id"], category, messages, _reference(category, answer["ground_truth"], offered))
        )
    return questions


def write_results(
    folder: Path, category: str, texts: Mapping[str, str], questions: Sequence[Question]
) -> Path:
    """A result file of one category, as `eval_main.py` reads it: every question in order, without the thought."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data_{category}_result.json"
    rows = [{"id": q.id, "result": split_thought(texts.get(q.id, ""))[1].strip()} for q in questions]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def score_results(
    checkout: Path, results: Path, categories: Sequence[str], language: str, work: Path
) -> tuple[list[Item], dict[str, float], list[str]]:
    """Items, ACEBench's own accuracies and what could not be scored, by its `eval_main.py` in the folder `work`.

    Args:
      results: a folder of result files, `data_<category>_result.json`.

    Raises:
      UserError: `eval_main.py` fails; with its last line.
    """
    items: list[Item] = []
    accuracies: dict[str, float] = {}
    left_out: list[str] = []
    name = "dcore"
    inputs = work / "result_all" / f"result_{language}" / name
    scores = work / "score_all" / f"score_{language}" / name
    for folder in (inputs, scores):
        folder.mkdir(parents=True, exist_ok=True)
    if not (work / "data_all").exists():
        os.symlink((checkout / "data_all").resolve(), work / "data_all")
    data = checkout / "data_all" / f"data_{language}"
    for category in categories:
        ids = [row["id"] for row in _lines(data / f"data_{category}.json")]
        rows, problems = _whole_results(results / f"data_{category}_result.json", ids, category)
        left_out += problems
        if rows is None:
            items += [Item(question, category, 0.0, reason="no result file") for question in ids]
            continue
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (inputs / f"data_{category}_result.json").write_text(text, encoding="utf-8")
        _run(checkout, work, ["--model", name, "--category", category, "--language", language])
        head, *wrong = _lines(scores / f"data_{category}_score.json")
        accuracies |= {f"{category} {key}": value for key, value in head.items() if "accuracy" in key}
        reasons = {
            ids[row["id"]] if isinstance(row["id"], int) else row["id"]: _reason(row)
            for row in wrong
            if row.get("valid") is False
        }
        items += [Item(i, category, float(i not in reasons), reason=reasons.get(i, "")) for i in ids]
        if len(ids) - len(reasons) != head["correct_count"]:
            left_out.append(
                f"{category}: eval_main.py counts {head['correct_count']} as right and lists {len(reasons)} as wrong"
            )
    return items, accuracies, left_out


def _whole_results(
    path: Path, ids: Sequence[str], category: str
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """A row for each question in the order of the questions; what is damaged, foreign or missing is reported and empty."""
    if not path.is_file():
        return None, [f"{category}: no {path.name}"]
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            problems.append(f"{path.name}:{number}: not UTF-8")
            continue
        except ValueError:
            problems.append(f"{path.name}:{number}: invalid JSON")
            continue
        if not isinstance(row, dict) or row.get("id") not in ids or "result" not in row:
            problems.append(f"{path.name}:{number}: no result of a question of {category}")
        elif row["id"] in found:
            problems.append(f"{path.name}:{number}: {row['id']} is there already; the first counts")
        else:
            found[row["id"]] = row
    empty: Any = [] if category.startswith("agent") else ""
    problems += [f"{path.name}: no result of {i}" for i in ids if i not in found]
    return [found.get(i, {"id": i, "result": empty, "process": []}) for i in ids], problems


def _run(checkout: Path, work: Path, arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(_WORKER), str(checkout.resolve()), *arguments],
        cwd=work,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        raise UserError(f"eval_main.py of {checkout} fails: {last[:300]}")


def _reason(row: Mapping[str, Any]) -> str:
    error = row.get("error")
    return " ".join(
        str(part) for part in ([row.get("error_type", "")] + (error if isinstance(error, list) else [error]))
    )[:300]


def _reference(category: str, truth: Any, offered: Collection[str]) -> str:
    """What a perfect model says: the first of several right answers."""
    if category == "special_irrelevant":
        return f'["{_SPECIAL[category]}"]'
    if category in _SPECIAL:
        said = [
            _SPECIAL[category].format(name=name, values=", ".join(values)) for name, values in truth.items()
        ]
        return json.dumps(said, ensure_ascii=False)
    first = truth[0] if isinstance(truth, list) else truth
    return render_calls(
        [Call(_plain(name, offered), arguments) for name, arguments in first.items()], "python"
    )


def _plain(name: str, offered: Collection[str]) -> str:
    """A function's name without the number that tells apart two calls of it in one answer (`f_1`, `f_2`)."""
    head, _, tail = name.rpartition("_")
    return head if tail.isdigit() and name not in offered else name


def _lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; is --checkout a clone of ACEBench?") from None


def _literal(path: Path, name: str) -> Any:
    """The literal that a module of the checkout assigns to a name; the module is not run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: {error}; is --checkout a clone of ACEBench?") from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise UserError(f"{path} has no {name}; is --checkout a clone of ACEBench?")
