"""BFCL while a run trains: `--eval bfcl:live_simple`; see `player.evaluators`."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError, check_choice
from dcore_jax.evaluation.bfcl.client import Client
from dcore_jax.evaluation.bfcl.generate import Generation, generate
from dcore_jax.evaluation.bfcl.install import RELEASES, install
from dcore_jax.evaluation.bfcl.score import expand, score_results
from dcore_jax.evaluation.summary import Evaluation
from dcore_jax.player.evaluators import Evaluate, Score
from dcore_jax.player.model import PlayableModel

_SHOWN = 8  # answers written down, wrong ones first
_MODES = ("prompt", "fc")
_USAGE = (
    "bfcl:live_simple[,another category or group][,limit=N][,mode=prompt|fc][,version=v3|v4][,thinking=no]"
)


@dataclass(frozen=True)
class _Asked:
    """What stands behind the colon."""

    categories: tuple[str, ...]
    how: Generation


def bfcl(argument: str) -> Evaluate:
    """Categories of BFCL, all their questions or the first `limit` of each: `bfcl:live_simple`, `bfcl:live,limit=20,mode=fc`.

    The accuracy is the share of all questions answered right; `unanswered` counts those that did not fit into the model's length.

    Raises:
      UserError: no such category or setting; bfcl-eval is not here and cannot be installed.
    """
    asked = _parse(argument)
    folder = install(asked.how.version)
    with Client(folder, asked.how.version) as client:
        categories = expand(asked.categories, client.ask("catalogue"))

    def evaluate(model: PlayableModel) -> Score:
        with (
            tempfile.TemporaryDirectory(prefix="dcore-bfcl-") as results,
            Client(folder, asked.how.version) as client,
        ):
            notes = generate(model, client, categories, results, asked.how)
            found = score_results(
                results, folder, asked.how.version, categories=categories, mode=asked.how.mode, processes=1
            )
            answers = _answers(Path(results))
        return Score(*_figures(found, len(notes)), _samples(found, answers))

    return evaluate


def _parse(argument: str) -> _Asked:
    words = [word.strip() for word in argument.split(",") if word.strip()]
    categories = tuple(word for word in words if "=" not in word)
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := settings.keys() - {"limit", "mode", "version", "thinking"}:
        raise UserError(f"bfcl has no setting {', '.join(sorted(unknown))}; write {_USAGE}")
    if not categories:
        raise UserError(f"no category of BFCL; write {_USAGE}")
    version, mode = settings.get("version", "v3"), settings.get("mode", "prompt")
    thinking, limit = settings.get("thinking", "yes"), settings.get("limit", "0")
    check_choice("the BFCL version", version, RELEASES)
    check_choice("the mode of BFCL", mode, _MODES)
    check_choice("thinking", thinking, ("yes", "no"))
    if not limit.isdecimal():
        raise UserError(f"limit={limit} of bfcl is no number of questions; write {_USAGE}")
    how = Generation(
        version, "fc" if mode == "fc" else "prompt", thinking=thinking == "yes", limit=int(limit)
    )
    return _Asked(categories, how)


def _figures(found: Evaluation, unanswered: int) -> tuple[float, dict[str, float]]:
    counts = found.counts()
    metrics = {name: count.share for name, count in counts.items()} if len(counts) > 1 else {}
    return found.overall().share, {**metrics, "unanswered": float(unanswered)}


def _answers(results: Path) -> dict[str, Any]:
    rows = [
        json.loads(line)
        for path in results.glob("*_result.json")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return {row["id"]: row["result"] for row in rows}


def _samples(found: Evaluation, answers: dict[str, Any]) -> list[dict[str, Any]]:
    shown = sorted(found.items, key=lambda item: item.correct)[:_SHOWN]
    return [
        {"id": item.id, "category": item.category, "correct": item.correct, "reason": item.reason}
        | {"answer": answers.get(item.id)}
        for item in shown
    ]
