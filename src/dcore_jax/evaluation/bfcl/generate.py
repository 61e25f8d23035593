"""Plays the benchmark's questions with a model; writes result files as the benchmark does, and asks nothing that they answer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from dcore_jax.atomic import write_text_atomic
from dcore_jax.data.chat_template import chat_template
from dcore_jax.engines import SamplingParams
from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl.client import Answers
from dcore_jax.evaluation.bfcl.rendering import HandlerHistory, assistant_message
from dcore_jax.evaluation.bfcl.results import Row, match_rows, read_rows
from dcore_jax.evaluation.bfcl.sessions import BFCLSession, Question, questions_of, result_row
from dcore_jax.evaluation.bfcl.styles import Style
from dcore_jax.player import History, Limits, PlayableModel, Played, Turn, new_rerender, play
from dcore_jax.player.session import Message

Rendering = Literal["auto", "handler", "template"]
_SETTINGS = "generation.json"


@dataclass(frozen=True)
class Generation:
    """How questions are asked; kept beside the results, which must all be made with one.

    Args:
      mode: `prompt`: functions in the system message, Python calls; `fc`: Qwen's function calling.
      rendering: `handler`: prompts as bfcl-eval's handler of Qwen3 writes them; `template`: by the model's own chat template;
        `auto`: the handler's where the tokenizer has ChatML's tokens.
      thinking: False: Qwen3's no-think mode.
      limit: questions of each category, the first ones; 0: all.
    """

    version: str
    mode: Literal["prompt", "fc"] = "prompt"
    rendering: Rendering = "auto"
    thinking: bool = True
    temperature: float = 0.001
    max_tokens: int = 4096
    seed: int = 0
    limit: int = 0

    @property
    def function_calling(self) -> bool:
        """Whether functions are shown as tools."""
        return self.mode == "fc"


def generate(
    model: PlayableModel,
    client: Answers,
    categories: Sequence[str],
    folder: str | Path,
    how: Generation,
    *,
    at_once: int = 64,
    progress: bool = True,
) -> list[str]:
    """Answers every question of the categories that the folder has no answer to; returns notes on those that failed.

    Args:
      folder: of the model's result files; what a cut run left there is kept and completed.

    Raises:
      UserError: the folder's results were made in another way; a category whose tools are not here.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / _SETTINGS, {"model": model.name, **asdict(how)})
    if unplayable := [name for name in categories if "web_search" in name or "memory" in name]:
        raise UserError(
            f"{', '.join(unplayable)}: these need a search engine or a memory of earlier runs; score stored outputs instead"
        )
    rendering = _rendering(how.rendering, model)
    sessions: list[BFCLSession] = []
    asked: dict[str, list[Question]] = {}
    limit = int(client.ask("step_limit"))
    style = Style("tags" if how.function_calling else "prompt")
    for category in categories:
        asked[category] = questions_of(client, category, how.function_calling)
        missing = _missing(_file(folder, how.version, category), asked[category], how.limit)
        sessions += [
            BFCLSession(
                q, client, style, f"{category}-{q.index}".replace("-", "_"), limit, rendering == "template"
            )
            for q in missing
        ]
    notes: list[str] = []
    with _Writer(folder, how.version, categories) as writer:

        def written(played: Played) -> None:
            row = result_row(played)
            if str(row["result"]).startswith("Error during inference"):
                notes.append(f"{played.id}: {row['result']}")
            writer.write(played, row)

        play(
            sessions,
            model.engine,
            history_of(model, how, rendering),
            Limits(
                max_length=model.max_length,
                max_tokens=min(how.max_tokens, model.max_length),
                max_turns=10_000,
                max_calls=1_000_000,
                max_observation=1_000_000,
                at_once=at_once,
            ),
            sampling=SamplingParams(temperature=how.temperature, seed=how.seed),
            progress=progress,
            desc="BFCL",
            on_played=written,
        )
    for category, questions in asked.items():
        _missing(_file(folder, how.version, category), questions)  # in the benchmark's order
    return notes


def history_of(model: PlayableModel, how: Generation, rendering: str) -> History:
    """How prompts are rendered; see Generation.rendering."""
    if rendering == "handler":
        tokenizer = model.template.tokenizer
        return HandlerHistory(tokenizer, how.version, how.function_calling, how.thinking)

    def message_of(turn: Turn) -> Message:
        message = assistant_message(turn.text, "v4", how.function_calling)
        calls = message.pop("tool_calls", [])
        shown = [{"type": "function", "function": call} for call in calls]
        return {**message, **({"tool_calls": shown} if shown else {})}

    template = model.template
    if not how.thinking:
        template = chat_template(template.tokenizer, ["enable_thinking=false"], datetime.now())
    return new_rerender(template, message_of=message_of)


def _rendering(asked: Rendering, model: PlayableModel) -> str:
    if asked != "auto":
        return asked
    vocabulary = model.template.tokenizer.get_vocab()
    chatml = {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys()
    return "handler" if chatml else "template"


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes how results are made, or compares it with how those in the folder were; the limit may grow."""
    fixed = {name: value for name, value in settings.items() if name != "limit"}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} {before.get(name)!r}" for name, value in fixed.items() if before.get(name) != value
        ]
        if changed:
            raise UserError(
                f"{path.parent} holds answers made with {', '.join(changed)}; choose another --output"
            )
    write_text_atomic(path, json.dumps(fixed, indent=2) + "\n")


def _file(folder: Path, version: str, category: str) -> Path:
    return folder / f"BFCL_{version}_{category}_result.json"


def _missing(path: Path, questions: Sequence[Question], limit: int = 0) -> list[Question]:
    """Of the first `limit` questions those without an answer; the file keeps its whole rows, in the benchmark's order."""
    if not path.exists():
        return list(questions[: limit or None])
    rows, _ = read_rows(path)
    answers = dict(match_rows(path, rows, [q.id for q in questions], questions[0].category).answers)
    write_text_atomic(path, "".join(_line(answers[index]) for index in sorted(answers)))
    return [question for question in questions[: limit or None] if question.index not in answers]


def _line(row: Row) -> str:
    return json.dumps({"id": row.id, "result": row.result, **row.fields}) + "\n"


class _Writer:
    """Appends each answer to its category's file as soon as it is there."""

    def __init__(self, folder: Path, version: str, categories: Sequence[str]):
        self._paths = {category: _file(folder, version, category) for category in categories}
        self._open: dict[str, IO[str]] = {}

    def write(self, played: Played, row: dict[str, Any]) -> None:
        session = played.session
        assert isinstance(session, BFCLSession)
        category = session.question.category
        if category not in self._open:
            self._open[category] = self._paths[category].open("a", encoding="utf-8")
        self._open[category].write(json.dumps(row) + "\n")
        self._open[category].flush()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._open.values():
            file.close()
