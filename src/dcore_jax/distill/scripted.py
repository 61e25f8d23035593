"""An engine that answers from a script, without a model: for tests, and to time the pipeline alone."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dcore_jax.calls import CallFormat, render_calls
from dcore_jax.distill.sample import SeedSample
from dcore_jax.engines.engine import EngineStats, FinishReason, Request, Sample


class ScriptedAnswer(NamedTuple):
    """A scripted answer; with finish reason `length` one that was cut off, with `overlong` one to a prompt that is too long."""

    text: str
    finish_reason: FinishReason = "stop"


# From a request's id, "<sample id>/<stage>/<subtask>/<attempt>", to its answer.
Script = Callable[[str], ScriptedAnswer | str]


class ScriptedEngine:
    """An `Engine` whose answers come from a script.

    Args:
      batch: most answers that one poll returns; None: all.
      newest_first: answer the latest requests first.
    """

    def __init__(
        self, tokenizer: Any, script: Script, *, batch: int | None = None, newest_first: bool = False
    ):
        self._tokenizer, self._script = tokenizer, script
        self._batch, self._newest_first = batch, newest_first
        self._waiting: deque[Request] = deque()
        self._ids: dict[str, tuple[int, ...]] = {}
        self.asked: list[str] = []  # ids of the requests in their order
        self.keep_asked = True  # False: memory does not grow with the requests
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

    def release(self) -> None:
        """Holds no memory of a device."""

    def update_weights(self, weights: Any, version: int) -> None:
        raise NotImplementedError("a scripted engine has no weights")

    def close(self) -> None:
        self._waiting.clear()

    def _answer(self, request: Request) -> Sample:
        scripted = self._script(str(request.id))
        answer = scripted if isinstance(scripted, ScriptedAnswer) else ScriptedAnswer(scripted)
        ids = () if answer.finish_reason == "overlong" else self._encode(answer.text)
        if answer.finish_reason == "stop":
            ids += (self._tokenizer.eos_token_id,)
        self._requests += 1
        self._generated += len(ids)
        return Sample(request.id, request.prompt_ids, ids, (0.0,) * len(ids), answer.finish_reason, 0)

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._ids:
            if len(self._ids) > 4096:
                self._ids.clear()
            self._ids[text] = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._ids[text]


def perfect_script(samples: Mapping[str, SeedSample], call_format: CallFormat = "python") -> Script:
    """The script of a model that knows every reference, with the subtasks of the sample's task where it has one."""

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
        if sample.kind in ("irrelevant", "missing"):
            return thought + (sample.answer or "I cannot do this.")
        if stage == "label":
            whole = [tuple(range(len(sample.reference)))] if sample.kind == "parallel" else []
            turns = [*(sample.turns or whole or [(i,) for i in range(len(sample.reference))]), ()]
            calls = tuple(sample.reference[i] for i in turns[number])
        else:
            calls = (sample.reference[number],)
            thought = f"<think>\nstep {number + 1}: {descriptions(sample)[number]}.\n</think>\n\n"
        return thought + (render_calls(calls, call_format) if calls else "done.")

    return script


def descriptions(sample: SeedSample) -> tuple[str, ...]:
    """The subtasks' descriptions from the sample's task, or else from the names of the tools to call."""
    known = getattr(sample.task, "subtasks", ())
    return tuple(known) or tuple(f"use {call.name}" for call in sample.reference)
