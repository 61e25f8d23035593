"""Scores stored outputs with the benchmark's own checkers, in as many processes as there are cores."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dcore_jax.errors import UserError
from dcore_jax.evaluation.bfcl.client import Client, WorkerEnded
from dcore_jax.evaluation.bfcl.results import (
    Matched,
    ResultFile,
    Row,
    category_for,
    find_result_files,
    match_rows,
    read_rows,
)
from dcore_jax.evaluation.bfcl.styles import Mode, Style, style_of
from dcore_jax.evaluation.bfcl.table import group_accuracies, published_rows
from dcore_jax.evaluation.summary import Evaluation, Item
from dcore_jax.progress import progress_bar

_CHUNK = 100  # answers in a request: a process takes the next when it is done


def score_results(
    folder: str | Path,
    install: str | Path,
    version: str,
    *,
    model_name: str | None = None,
    categories: Sequence[str] = (),
    mode: Mode = "auto",
    seconds: float = 30.0,
    processes: int | None = None,
) -> Evaluation:
    """The evaluation of stored outputs.

    Args:
      folder: result files of one model, or folders of models.
      install: the folder of `bfcl-eval`; see install.py.
      version: whose data and checkers are used: `v3` or `v4`.
      categories: names of categories or of the benchmark's groups (`live`, `multi_turn`); empty: all that have a file.
      seconds: time limit of one item.

    Raises:
      UserError: no result files; an unknown category.
    """
    model, files = find_result_files(folder, model_name)
    number = processes or os.cpu_count() or 1
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(install, version, seconds=seconds)) for _ in range(number)]
        first = clients[0]
        catalogue = first.ask("catalogue")
        chosen, notes = _choose_files(files, version, expand(categories, catalogue), catalogue["categories"])
        rows: dict[str, list[Row]] = {}
        for category, file in chosen.items():
            rows[category], damaged = read_rows(file.path)
            notes += damaged
        style = style_of(
            (row.result for found in rows.values() for row in found),
            first.ask("model", name=model),
            mode,
            {name for category in rows for name in first.ask("dotted_names", category=category)},
        )
        matched: dict[str, Matched] = {}
        ids: dict[str, list[str]] = {}
        for category, found in rows.items():
            ids[category] = first.ask("ids", category=category)
            matched[category] = match_rows(chosen[category].path, found, ids[category], category)
            notes += matched[category].notes
        verdicts = _score(clients, matched, style)
    items = tuple(
        item
        for category in matched
        for item in _items(category, matched[category], ids[category], verdicts[category])
    )
    renamed = [f"{row} as {question}" for match in matched.values() for row, question in match.by_index]
    return evaluation_of(
        model, items, notes, version, {"calls": str(style), "matched by index": "; ".join(renamed)}
    )


def evaluation_of(
    model: str, items: Sequence[Item], notes: Sequence[str], version: str, settings: Mapping[str, Any]
) -> Evaluation:
    """Scored items with the benchmark's group figures and the published rows beside them."""
    counts = Evaluation("bfcl", model, tuple(items)).counts()
    return Evaluation(
        "bfcl",
        model,
        tuple(items),
        tuple(notes),
        published=published_rows(version),
        settings={"version": version, **{name: value for name, value in settings.items() if value}},
        metrics=group_accuracies({name: count.share for name, count in counts.items()}, counts, version),
    )


def expand(categories: Sequence[str], catalogue: Mapping[str, Any]) -> list[str]:
    """Categories and groups of categories as a list of categories.

    Raises:
      UserError: a name that is neither.
    """
    known, groups = catalogue["categories"], catalogue["groups"]
    found: list[str] = []
    for name in categories:
        if name not in known and name not in groups:
            raise UserError(
                f"{name!r} is no category; there are {', '.join(known)}, and the groups {', '.join(groups)}"
            )
        found += groups.get(name, [name]) if name not in known else [name]
    return list(dict.fromkeys(found))


def _choose_files(
    files: Sequence[ResultFile], version: str, wanted: Sequence[str], known: Sequence[str]
) -> tuple[dict[str, ResultFile], list[str]]:
    """The file of each category that is to be scored, in the benchmark's order; notes on files left out."""
    found: dict[str, ResultFile] = {}
    notes = []
    for file in sorted(files, key=lambda file: file.version != version):  # this version's own first
        category = category_for(version, file.category)
        if category not in known:
            notes.append(f"{file.path}: BFCL {version} has no category {file.category}; not scored")
        elif wanted and category not in wanted:
            continue
        elif category in found:
            notes.append(f"{file.path}: {category} is also in {found[category].path}, which is scored")
        else:
            found[category] = file
    notes += [f"{category}: no result file" for category in wanted if category not in found]
    if not found:
        raise UserError(f"no result file of {', '.join(wanted) or 'a known category'}: {'; '.join(notes)}")
    return {category: found[category] for category in known if category in found}, notes


def _score(
    clients: Sequence[Client], matched: Mapping[str, Matched], style: Style
) -> dict[str, dict[int, tuple[bool, str]]]:
    """Verdicts by category and index of the question."""
    chunks = list(_chunks(matched))
    verdicts: dict[str, dict[int, tuple[bool, str]]] = {category: {} for category in matched}
    bar = progress_bar(sum(len(rows) for _, rows in chunks), unit="answer", desc="scoring", transient=True)
    pending = iter(chunks)

    def work(client: Client) -> None:
        for category, rows in pending:
            verdicts[category] |= _verdicts(client, category, rows, style)
            bar.update(len(rows))

    # `next` of a list's iterator is atomic: each process takes the chunk that no other has.
    with ThreadPoolExecutor(len(clients)) as pool:
        for done in [pool.submit(work, client) for client in clients]:
            done.result()
    bar.close()
    return verdicts


def _verdicts(
    client: Client, category: str, rows: Sequence[tuple[int, Row]], style: Style
) -> dict[int, tuple[bool, str]]:
    """Verdicts by index; an answer that kills the checkers' process is a wrong one."""
    asked = [(index, row.result) for index, row in rows]
    try:
        answers = client.ask("score", category=category, rows=asked, style=style.request())
        return {index: (valid, reason) for (index, _), (valid, reason) in zip(rows, answers, strict=True)}
    except WorkerEnded as error:
        client.restart()
        if len(rows) == 1:
            return {rows[0][0]: (False, f"the checker died: {error}")}
        return {
            index: verdict
            for row in rows
            for index, verdict in _verdicts(client, category, [row], style).items()
        }


def _chunks(matched: Mapping[str, Matched]) -> Iterator[tuple[str, list[tuple[int, Row]]]]:
    """Longest categories of conversations first, so that no process is left with one of them at the end."""
    for category in sorted(matched, key=lambda name: "multi_turn" not in name):
        answers = matched[category].answers
        size = _CHUNK // 10 if "multi_turn" in category else _CHUNK
        for start in range(0, len(answers), size):
            yield category, answers[start : start + size]


def _items(
    category: str, match: Matched, ids: Sequence[str], verdicts: Mapping[int, tuple[bool, str]]
) -> Iterator[Item]:
    seen: dict[str, int] = {}
    for index, _ in match.answers:
        one = ids[index]
        seen[one] = seen.get(one, 0) + 1
        valid, reason = verdicts[index]
        # v3's live_relevance lists one id twice: an item's id is its own.
        yield Item(one if seen[one] == 1 else f"{one}#{seen[one]}", category, float(valid), reason=reason)
