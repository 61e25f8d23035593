"""An engine that plays back scripted answers: for tests and for measuring the pipeline itself. No model is behind it."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dcore_jax.calls import CallFormat, render_calls
from dcore_jax.distill.sample import SeedSample
from dcore_jax.engines.engine import EngineStats, FinishReason, Request, Sample


class Line(NamedTuple):
    """A scripted answer. `length` as finish reason plays an answer that was cut off, or never came to an end."""

    text: str
    finish_reason: FinishReason = "stop"


# From a request's id, "<sample id>/<stage>/<subtask>/<attempt>", to what is said.
Script = Callable[[str], Line | str]


class ScriptedEngine:
    """An `Engine` whose answers come from a script, all at once or `batch` at a poll, the newest first if asked to."""

    def __init__(
        self, tokenizer: Any, script: Script, *, batch: int | None = None, newest_first: bool = False
    ):
        self._tokenizer, self._script = tokenizer, script
        self._batch, self._newest_first = batch, newest_first
        self._waiting: deque[Request] = deque()
        self._ids: dict[str, tuple[int, ...]] = {}
        self.asked: list[str] = []  # ids of requests, as they came
        self.keep_asked = True
        self._requests = self._generated = 0

    @property
    def weight_version(self) -> int:
        return 0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(requests=self._requests, generated_tokens=self._generated)

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        return [self._answer(request) for request in requests]

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)
        if self.keep_asked:
            self.asked += [str(request.id) for request in requests]

    def poll(self) -> list[Sample]:
        count = min(len(self._waiting), self._batch or len(self._waiting))
        take = self._waiting.pop if self._newest_first else self._waiting.popleft
        return [self._answer(take()) for _ in range(count)]

    def update_weights(self, weights: Any, version: int) -> None:
        raise NotImplementedError("a scripted engine has no weights")

    def close(self) -> None:
        self._waiting.clear()

    def _answer(self, request: Request) -> Sample:
        said = self._script(str(request.id))
        line = said if isinstance(said, Line) else Line(said)
        ids = () if line.finish_reason == "overlong" else self._encoded(line.text)
        if line.finish_reason == "stop":
            ids += (self._tokenizer.eos_token_id,)
        self._requests += 1
        self._generated += len(ids)
        return Sample(request.id, request.prompt_ids, ids, (0.0,) * len(ids), line.finish_reason, 0)

    def _encoded(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            if len(self._ids) > 4096:
                self._ids.clear()
            self._ids[text] = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._ids[text]


def perfect_script(samples: Mapping[str, SeedSample], call_format: CallFormat = "python") -> Script:
    """A model that knows every reference: subtasks by the tasks' own words where there are any."""

    def script(request_id: str) -> str:
        sample_id, stage, subtask, _ = request_id.rsplit("/", 3)
        sample, number = samples[sample_id], int(subtask)
        if stage == "decompose":
            return json.dumps(
                [
                    {"step": i + 1, "description": description, "index": [i]}
                    for i, description in enumerate(descriptions(sample))
                ]
            )
        thought = "<think>\nno tool serves this request.\n</think>\n\n"
        if sample.kind == "irrelevant":
            return thought + (sample.answer or "I cannot do this.")
        if stage == "label":
            calls = sample.reference if sample.kind == "parallel" else sample.reference[number : number + 1]
        else:
            calls = (sample.reference[number],)
            thought = f"<think>\nstep {number + 1}: {descriptions(sample)[number]}.\n</think>\n\n"
        return thought + (render_calls(calls, call_format) if calls else "done.")

    return script


def descriptions(sample: SeedSample) -> tuple[str, ...]:
    """The words of the sample's task for its subtasks, or the names of the tools to call."""
    known = getattr(sample.task, "subtasks", ())
    return tuple(known) or tuple(f"use {call.name}" for call in sample.reference)
