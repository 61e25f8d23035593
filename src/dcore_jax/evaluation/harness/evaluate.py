"""The loop of a benchmark with a world of its own: play what is not played yet, keep every trajectory, score them all.

`trajectories.jsonl` in the output folder has a line for each conversation as it ends. The same command started again goes on
where it was, and `--predictions` scores such a file, or one of the benchmark's own, without a model.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.agent_config import AgentConfig
from dcore_jax.evaluation.harness.agents import play_sessions
from dcore_jax.evaluation.harness.process import HarnessError, HarnessProcess
from dcore_jax.evaluation.harness.session import HarnessSession, Part
from dcore_jax.evaluation.summary import Evaluation, Item
from dcore_jax.evaluation.trials import pass_hat_metrics
from dcore_jax.player import Session
from dcore_jax.progress import progress_bar

TRAJECTORIES = "trajectories.jsonl"
_MOST_TRIALS = 1000


@dataclass(frozen=True)
class HarnessRun:
    """What is evaluated.

    Args:
      benchmark: its name in the summary.
      tasks: options of the worker's `tasks`.
      conversation: what the worker's `open` is given of the user and of limits.
      trials: times that each task is played.
      settings: shown on the page.
      published: rows of papers beside ours.
    """

    benchmark: str
    tasks: Mapping[str, Any]
    conversation: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


# (task, trial) -> the trajectory of each part
Trajectories = dict[tuple[str, int], dict[str, Any]]


# (origin, row) of a file's rows; a text in the place of a row says why it is none.
ReadRows = Callable[[Path], Iterable[tuple[str, Any]]]


def play_or_score(
    process: HarnessProcess,
    run: HarnessRun,
    agent: AgentConfig,
    output: str | Path,
    *,
    predictions: Sequence[str],
    read: ReadRows,
    name: str = "",
) -> Evaluation:
    """`evaluate_trajectories` of stored `predictions`, under `name`; without any `evaluate_harness`."""
    if predictions:
        return evaluate_trajectories(process, run, predictions, read, name)
    return evaluate_harness(process, run, agent, output)


def evaluate_harness(
    process: HarnessProcess, run: HarnessRun, agent: AgentConfig, output: str | Path
) -> Evaluation:
    """Plays and scores.

    Raises:
      UserError: no tasks; no model, or one that cannot be opened; a folder that holds another run.
    """
    tasks = _tasks(process, run)
    path = Path(output) / TRAJECTORIES
    path.parent.mkdir(parents=True, exist_ok=True)
    found, left_out = _resumed(path, run, agent)
    parts = [
        Part(task["id"], part, trial, task["category"])
        for trial in range(run.trials)
        for task in tasks
        for part in task["parts"]
    ]
    todo = [part for part in parts if part.part not in found.get((part.task, part.trial), {})]
    sessions = [HarnessSession(process, part, run.conversation, agent.prompting) for part in todo]
    references = {}
    if agent.name != "model":
        references = {s.id: process.ask("reference", task=s.part.task, part=s.part.part) for s in sessions}
    failures: dict[tuple[str, int], str] = {}
    with path.open("a", encoding="utf-8") as file:

        def keep(session: Session, error: str | None) -> None:
            assert isinstance(session, HarnessSession)
            part, trajectory = session.part, session.trajectory
            if error is not None:
                failures[part.task, part.trial] = error
                left_out.append(f"{session.id}: {error}")
            if trajectory is None or error is not None:  # played again by the next start
                return
            found.setdefault((part.task, part.trial), {})[part.part] = trajectory
            line = {"task": part.task, "part": part.part, "trial": part.trial, "trajectory": trajectory}
            file.write(json.dumps(line) + "\n")
            file.flush()

        if sessions:
            play_sessions(agent, sessions, references, Path(output), keep)
    return _scored(process, run, tasks, found, agent.label, left_out, failures)


def evaluate_trajectories(
    process: HarnessProcess,
    run: HarnessRun,
    files: Sequence[str],
    read: ReadRows,
    model: str = "",
) -> Evaluation:
    """Scores stored trajectories; a task without one is wrong.

    Args:
      read: (origin, row) of a file; a row is `{"task", "part", "trial", "trajectory"}`, or a text that says why it is none.

    Raises:
      UserError: a file that is missing or cannot be read as a whole.
    """
    tasks = _tasks(process, run)
    known = {(task["id"], part) for task in tasks for part in task["parts"]}
    found: Trajectories = {}
    left_out = []
    for name in files:
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file; check the path given as predictions")
        for origin, row in read(Path(name)):
            if isinstance(row, str):
                left_out.append(f"{origin}: {row}")
                continue
            task, part, trial = str(row["task"]), str(row.get("part", "0")), row.get("trial", 0)
            if type(trial) is not int or not 0 <= trial < _MOST_TRIALS:
                left_out.append(f"{origin}: trial {trial!r:.40} is no number from 0 to {_MOST_TRIALS - 1}")
            elif (task, part) not in known:
                left_out.append(f"{origin}: no task {task!r:.80} among those evaluated")
            elif part in found.get((task, trial), {}):
                left_out.append(
                    f"{origin}: task {task!r:.80}, trial {trial} is there already; the first counts"
                )
            else:
                found.setdefault((task, trial), {})[part] = row["trajectory"]
    trials = max((trial for _, trial in found), default=0) + 1
    run = HarnessRun(run.benchmark, run.tasks, {}, trials, run.settings, run.published)
    return _scored(process, run, tasks, found, model or Path(files[0]).name, left_out, {})


def trajectory_rows(path: Path) -> Iterable[tuple[str, Any]]:
    """The rows of a `trajectories.jsonl`, as `evaluate_trajectories` wants them."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield (
                f"{path.name}:{number}",
                "not UTF-8" if isinstance(error, UnicodeDecodeError) else "invalid JSON",
            )
            continue
        if isinstance(row, dict) and "settings" in row and "task" not in row:
            continue
        whole = isinstance(row, dict) and "task" in row and "trajectory" in row
        yield f"{path.name}:{number}", row if whole else 'a row without "task" and "trajectory"'


def _tasks(process: HarnessProcess, run: HarnessRun) -> list[dict[str, Any]]:
    try:
        tasks = process.ask("tasks", **run.tasks)
    except HarnessError as error:
        raise UserError(f"{run.benchmark}: {error}") from None
    if not tasks:
        raise UserError(f"{run.benchmark} has no task for these options")
    return list(tasks)


def _resumed(path: Path, run: HarnessRun, agent: AgentConfig) -> tuple[Trajectories, list[str]]:
    """What an earlier start of the same command has played; damaged lines are played again."""
    given = [run.benchmark, _without_key(run.conversation), agent.label, agent.temperature, agent.seed]
    given += [agent.strip_thoughts, str(agent.prompting)]
    settings = json.loads(json.dumps(given, sort_keys=True, default=str))
    if not path.exists() or not path.read_bytes().strip():
        path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
        return {}, []
    first = path.read_bytes().splitlines()[0]
    try:
        same = json.loads(first)["settings"] == settings
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(
            f"{path} holds the trajectories of another run; choose another --output, or remove it"
        )
    found: Trajectories = {}
    for _, row in trajectory_rows(path):
        if not isinstance(row, str):
            found.setdefault((row["task"], row["trial"]), {})[row["part"]] = row["trajectory"]
    if not path.read_bytes().endswith(b"\n"):  # a line that was cut when the run was
        with path.open("ab") as file:
            file.write(b"\n")
    return found, []


def _without_key(settings: Any) -> Any:
    """Settings without the keys of servers, which no file may hold."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: _without_key(value) for name, value in settings.items() if name != "key"}


def _scored(
    process: HarnessProcess,
    run: HarnessRun,
    tasks: Sequence[Mapping[str, Any]],
    found: Trajectories,
    model: str,
    left_out: list[str],
    failures: Mapping[tuple[str, int], str],
) -> Evaluation:
    wanted = [(task, trial) for trial in range(run.trials) for task in tasks]
    bar = progress_bar(len(wanted), unit="task", desc="scoring", transient=True)

    numbers: Counter[str] = Counter()  # what the benchmark counts beside its reward, summed

    def score(task: Mapping[str, Any], trial: int) -> Item:
        parts = found.get((task["id"], trial), {})
        if missing := [part for part in task["parts"] if part not in parts]:
            reason = failures.get(
                (task["id"], trial), f"no trajectory of {len(missing)} of {len(task['parts'])} parts"
            )
            return Item(task["id"], task["category"], 0.0, trial, reason)
        try:
            answer = process.ask("score", task=task["id"], trajectories=parts)
        except HarnessError as error:
            return Item(task["id"], task["category"], 0.0, trial, f"cannot be scored: {error}")
        numbers.update(answer.get("numbers", {}))
        return Item(task["id"], task["category"], float(answer["reward"]), trial, answer["reason"])

    items = []
    for task, trial in wanted:
        items.append(score(task, trial))
        bar.update()
    bar.close()
    unscored = [
        f"task {item.id}, trial {item.trial}: {item.reason}"
        for item in items
        if item.reason.startswith(("no trajectory", "cannot be scored"))
    ]
    return Evaluation(
        run.benchmark,
        model,
        tuple(items),
        (*left_out, *unscored),
        published=run.published,
        settings=run.settings,
        metrics={**pass_hat_metrics(items), **numbers},
    )
