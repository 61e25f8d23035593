"""Pseudo-labels (D-CORE, Table 6): calls from a file or from a labelling model, in place of the reference.

A labelling model serves the whole query itself: it calls, reads the tools' answers, and calls again.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from dcore_jax.calls import Call, CallFormat, as_calls, parse_response
from dcore_jax.data.files import Malformed, decode_json, file_rows, local_file
from dcore_jax.distill.act import Act, respond, start_environment
from dcore_jax.distill.ask import Ask, Rejected, Stage, require_ended
from dcore_jax.distill.conversation import call_turn, opening_messages, template_tools
from dcore_jax.distill.sample import SeedSample
from dcore_jax.distill.seeds.conversation import check_round_trip
from dcore_jax.distill.templates import Templates
from dcore_jax.errors import UserError

MAX_TURNS = 8  # of the labelling model for one query


def read_labels(path: str) -> dict[str, tuple[Call, ...]]:
    """The calls by sample id from a file of `{"id": <sample id>, "calls": [{"name", "arguments"}]}` rows.

    Raises:
      UserError: a file or a row that cannot be read, or an id given twice; names file, line and field.
    """
    labels: dict[str, tuple[Call, ...]] = {}
    for origin, row in file_rows(path, local_file(path)):
        if isinstance(row, Malformed):
            raise UserError(f"{origin}: {row}; each line holds an object with id and calls")
        name, calls = (row.get("id"), row.get("calls")) if isinstance(row, Mapping) else (None, None)
        with contextlib.suppress(Malformed):  # text that is not JSON is refused below, as all that is no list
            calls = decode_json(calls, "not JSON")  # as Parquet holds it
        if not isinstance(name, str) or not isinstance(calls, list):
            raise UserError(f'{origin}: a label needs "id" (text) and "calls" (a list of calls)')
        if name in labels:
            raise UserError(f"{origin}: id {name} is given twice; keep one label a sample")
        try:
            labels[name] = as_calls(calls)
            check_round_trip(labels[name])
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
    """The calls of all turns in which the labelling model serves the query. Raises Rejected with stage `label`."""
    environment = start_environment(sample, act, by_content=True)
    messages = [*opening_messages(sample, templates, call_format), {"role": "user", "content": sample.query}]
    tools = template_tools(sample, templates)
    calls: list[Call] = []
    for turn in range(MAX_TURNS):
        (answer,) = yield (Ask("label", tuple(messages), tools, turn, attempt, role="labeller"),)
        require_ended("label", answer)
        parsed = parse_response(answer.text, call_format)
        if parsed.calls is None:
            raise Rejected("label", f"calls that cannot be read: {parsed.error}", answer.text)
        if not parsed.calls:
            break
        calls += parsed.calls
        # One turn holds all calls of the parallel kind; a chain is not followed beyond the length of the record's.
        if sample.kind == "parallel" or len(calls) >= len(sample.reference) > 0:
            break
        messages += call_turn(parsed.calls, respond(environment, parsed.calls), call_format)
    if not calls:
        raise Rejected("label", "a label without calls", answer.text)
    return tuple(calls)
