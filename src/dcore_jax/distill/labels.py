"""Pseudo-labels (Table 6): calls from a file or from another model, in the place of the reference.

A labelling model serves the whole query itself: it calls, reads what the tools answer, and calls again.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from dcore_jax.calls import Call, CallFormat, as_calls, parse_response
from dcore_jax.data.files import Malformed, file_rows, local_file
from dcore_jax.distill.act import Act, respond, started
from dcore_jax.distill.ask import Ask, Rejected, Stage, require_ended
from dcore_jax.distill.conversation import called, offered, opening
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.seeds.conversation import carried
from dcore_jax.distill.templates import Templates
from dcore_jax.errors import UserError

MAX_TURNS = 8


def read_labels(path: str) -> dict[str, tuple[Call, ...]]:
    """A file of `{"id": <sample id>, "calls": [{"name", "arguments"}]}` rows.

    Raises:
      UserError: a file or a row that cannot be read, or an id given twice; names file, line and field.
    """
    labels: dict[str, tuple[Call, ...]] = {}
    for origin, row in file_rows(path, local_file(path)):
        if isinstance(row, Malformed):
            raise UserError(f"{origin}: {row}; each line holds an object with id and calls")
        name, calls = (row.get("id"), row.get("calls")) if isinstance(row, Mapping) else (None, None)
        if isinstance(calls, str):
            try:
                calls = json.loads(calls)  # as Parquet holds it
            except (ValueError, RecursionError):
                calls = None
        if not isinstance(name, str) or not isinstance(calls, list):
            raise UserError(f'{origin}: a label needs "id" (text) and "calls" (a list of calls)')
        if name in labels:
            raise UserError(f"{origin}: id {name} is given twice; keep one label a sample")
        try:
            labels[name] = as_calls(calls)
            carried(labels[name])
        except (UserError, Malformed) as error:
            raise UserError(f"{origin}: {error}") from None
    return labels


def find_label(
    sample: SeedSample, labels: Mapping[str, tuple[Call, ...]], path: str | Path
) -> tuple[Call, ...]:
    """The sample's label. Raises Rejected with stage `label` where there is none, or one without a call."""
    if sample.id not in labels:
        raise Rejected("label", f"no label in {Path(path).name}")
    if not labels[sample.id]:
        raise Rejected("label", "a label without calls")
    return labels[sample.id]


def ask_for_label(
    sample: SeedSample, templates: Templates, call_format: CallFormat, act: Act, attempt: int
) -> Stage[tuple[Call, ...]]:
    """The calls with which the labelling model serves the query, of all its turns together."""
    environment = started(sample, act, by_content=True)
    messages = [*opening(sample, templates, call_format), {"role": "user", "content": sample.query}]
    tools = offered(sample, templates)
    calls: list[Call] = []
    for turn in range(MAX_TURNS):
        (answer,) = yield (Ask("label", tuple(messages), tools, turn, attempt, of="labeller"),)
        require_ended("label", answer)
        parsed = parse_response(answer.text, call_format)
        if parsed.calls is None:
            raise Rejected("label", f"calls that cannot be read: {parsed.error}", answer.text)
        if not parsed.calls:
            break
        calls += parsed.calls
        if sample.kind == "parallel" or len(calls) >= len(sample.reference) > 0:
            break  # one turn holds all calls of the parallel kind; a longer chain than the record's is not followed
        messages += called(parsed.calls, respond(environment, parsed.calls), call_format)
    if not calls:
        raise Rejected("label", "a label without calls", answer.text)
    return tuple(calls)
