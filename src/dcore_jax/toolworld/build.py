"""From drawn requests to a task: its state, the reference that is run in it, its words and its tools."""

import hashlib
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from dcore_jax.calls import JSON, Call
from dcore_jax.toolworld.family import Output, Step, family_names, get_family, pick
from dcore_jax.toolworld.requests import Drawn, Request, slot_type
from dcore_jax.toolworld.task import REFUSAL, Task, difficulty, output_text
from dcore_jax.toolworld.tool import Tool, copy_state, run_tool


def build_task(
    rng: Random, drawn: Drawn, *, distractors: int, renamed: bool = False, held_out_wordings: bool = False
) -> Task:
    """The task of these requests; the same for equal streams.

    Args:
      distractors: number of tools of other families among the tools.
      renamed: all tools have their synonyms for names.
    """
    family, kind = drawn.family, drawn.kind
    tools = [_named(tool, renamed) for tool in family.tools]
    state = family.initial_state(rng, drawn.wanted())
    if drawn.rule is not None:
        state["rule"] = _rule(drawn, tools)
    runner = _Runner(state, dict(zip((tool.name for tool in family.tools), tools, strict=True)))
    history: list[dict[str, Any]] = []
    for request in drawn.history:
        history += _exchange(runner, request, _words(rng, request, held_out_wordings))
    initial_state = copy_state(state)

    order = _turn_order(drawn)
    numbers = {place: i for i, place in enumerate(place for turn in order for place in turn)}
    outputs: list[list[Any]] = [[] for _ in drawn.requests]
    calls: list[Call] = []
    responses: list[str] = []
    subtasks: list[str] = []
    for r, s in numbers:
        request = drawn.requests[r]
        call, output = runner.run(request.plan.steps[s], request, outputs[r])
        calls.append(call)
        responses.append(output_text(output))
        outputs[r].append(output)
        positions = (numbers[r, step] + 1 for step in range(len(request.plan.steps)))
        subtasks.append(request.plan.steps[s].wording.format(*positions, **request.values))

    query = _join([_words(rng, request, held_out_wordings) for request in drawn.requests], kind)
    shown = _with_distractors(rng, drawn, tools, distractors, renamed)
    policy = f"{drawn.rule.text}." if drawn.rule is not None else ""
    content = [family.name, query, initial_state, [[call.name, dict(call.arguments)] for call in calls]]
    if distractors or history or policy:
        content += [[tool.name for tool in shown], history, policy]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Task(
        id=f"{family.name}-{kind}-{digest[:16]}",
        family=family.name,
        kind=kind,
        tools=tuple(tool.schema() for tool in shown),
        query=query,
        initial_state=initial_state,
        final_state=state,
        subtasks=tuple(subtasks),
        reference=tuple(calls),
        turns=tuple(tuple(numbers[place] for place in turn) for turn in order),
        responses=tuple(responses),
        answer=_answer(drawn, outputs),
        difficulty=difficulty(
            kind, len(calls), distractors=distractors, history=len(drawn.history), policy=bool(policy)
        ),
        history=tuple(history),
        policy=policy,
    )


class _Runner:
    """Runs the steps of requests on a state, which changes in place."""

    def __init__(self, state: JSON, tools: dict[str, Tool]):
        self._state, self._tools = state, tools

    def run(self, step: Step, request: Request, outputs: Sequence[Any]) -> tuple[Call, Any]:
        """The call of a step, and its output."""
        tool = self._tools[step.tool]
        arguments = {
            name: outputs[source.step][source.key] if isinstance(source, Output) else request.values[source]
            for name, source in step.arguments.items()
        }
        return Call(tool.name, arguments), run_tool(tool, self._state, arguments)


def _turn_order(drawn: Drawn) -> list[list[tuple[int, int]]]:
    """The calling turns, each a list of (request, step).

    Independent calls share the first turn. A chain makes one call a turn; beside other calls its first one joins them.
    """
    if drawn.kind in ("irrelevant", "missing"):
        return []
    places = [[(r, s) for s in range(len(request.plan.steps))] for r, request in enumerate(drawn.requests)]
    if drawn.kind in ("parallel", "mixed"):
        longest = max(map(len, places))
        return [[steps[depth] for steps in places if depth < len(steps)] for depth in range(longest)]
    return [[place] for steps in places for place in steps]


def _exchange(runner: _Runner, request: Request, words: str) -> list[dict[str, Any]]:
    """A single request, its call, the tool's answer and the report, as OpenAI messages."""
    call, output = runner.run(request.plan.steps[0], request, ())
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return [
        {"role": "user", "content": words},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": call.name, "content": output_text(output)},
        {"role": "assistant", "content": request.plan.report.format(output, **request.values) + "."},
    ]


def _rule(drawn: Drawn, tools: Sequence[Tool]) -> JSON:
    rule = drawn.rule
    assert rule is not None
    index = [tool.name for tool in drawn.family.tools].index(rule.policy.tool)
    return {"tool": tools[index].name, "argument": rule.policy.slot, "value": rule.value, "text": rule.text}


def _answer(drawn: Drawn, outputs: list[list[Any]]) -> str:
    if drawn.rule is not None and drawn.rule.forbids:
        return f"the rule says {drawn.rule.text}."
    if drawn.kind == "irrelevant":
        return REFUSAL
    if drawn.kind == "missing":
        return f"which {slot_type(drawn.requests[0].absent)}?"
    reports = (
        request.plan.report.format(*found, **request.values)
        for request, found in zip(drawn.requests, outputs, strict=True)
    )
    return ". ".join(reports) + "."


def _with_distractors(rng: Random, drawn: Drawn, tools: list[Tool], count: int, renamed: bool) -> list[Tool]:
    """The family's tools and `count` of others, shuffled together; never one that would serve a foreign request."""
    if not count:
        return tools
    serving = {drawn.family.name, *(request.family.name for request in drawn.requests)}
    others = [
        _named(tool, renamed)
        for name in family_names()
        if name not in serving
        for tool in get_family(name).tools
    ]
    return _shuffled(rng, [*tools, *_shuffled(rng, others)[:count]])


def _shuffled(rng: Random, tools: list[Tool]) -> list[Tool]:
    return [tool for _, tool in sorted(((rng.random(), tool) for tool in tools), key=lambda pair: pair[0])]


def _named(tool: Tool, renamed: bool) -> Tool:
    return tool.renamed() if renamed else tool


def _words(rng: Random, request: Request, held_out: bool) -> str:
    return request.text(pick(rng, request.plan.wordings(held_out=held_out)))


def _join(requests: list[str], kind: str) -> str:
    if kind in ("sequential", "mixed"):
        return (", then " if kind == "sequential" else ", also ").join(requests)
    return " and ".join([", ".join(requests[:-1]), requests[-1]] if len(requests) > 1 else requests)
