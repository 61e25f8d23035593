"""Many samples at once through all stages of Algorithm 1: a scheduler between the samples' stages and the engines.

A sample moves on as soon as its answers are there; no stage waits for its slowest sample. A new sample starts only while
fewer questions wait than the engines take, so memory is bounded by `in_flight` and not by the number of samples. The result
does not depend on the order of arrival: each question's seed derives from the sample and the question alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dcore_jax.calls.bounds import CallSyntaxError, check_text
from dcore_jax.data.chat_template import as_chat_template, render_chat
from dcore_jax.data.files import Malformed
from dcore_jax.distill.act import may_block
from dcore_jax.distill.algorithm import Method, distill
from dcore_jax.distill.ask import Answer, Ask, ModelRole, Rejected, Stage, request_seed
from dcore_jax.distill.journal import Journal
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.engines.engine import Engine, Request, Sample

_TOOL_THREADS = 32  # samples whose tools run at the same time
_TOOL_WAIT = 0.05  # seconds to wait for tools when no engine has anything to do


def run_pipeline(
    samples: Iterable[SeedSample],
    method: Method,
    tokenizers: Mapping[ModelRole, Any],
    engines: Mapping[ModelRole, Sequence[Engine]],
    journal: Journal,
    *,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Takes every sample that the journal does not call finished to its outcome; True unless it was stopped before.

    Args:
      samples: with ids that differ. Drawn one by one, when there is room.
      tokenizers: with a chat template, or `ChatTemplate`s: of the model that is asked, and of the labeller where that is another
        one.
      engines: that serve them, none of them in two places; each takes `in_flight` questions at a time.
      on_outcome: called with each outcome after the journal has it.
      stopped: asked between rounds; what is in flight then is lost and asked again by the next start.
    """
    waiting = iter(samples)
    queues = {role: _ModelQueue(method, tokenizers[role], engines[role]) for role in engines}
    pipeline = _Pipeline(method, queues, journal, on_outcome)
    exhausted = False
    try:
        while not stopped():
            exhausted = exhausted or pipeline.start_samples(waiting)
            for queue in queues.values():
                queue.submit()
            journal.flush()  # once a round: a kill loses the answers of one round at most
            engines_busy = any(queue.busy for queue in queues.values())
            if exhausted and not engines_busy and not pipeline.running_tools:
                return True
            pipeline.receive_answers()
            # Polling an engine waits for it; only where no engine is at work may the tools be waited for.
            pipeline.receive_tool_results(timeout=0.0 if engines_busy else _TOOL_WAIT)
        return False
    finally:
        pipeline.close()
        journal.flush()


@dataclass
class _ActiveSample:
    """A started sample: its stage, the questions that the stage asked last, and their answers as far as they are there."""

    sample: SeedSample
    stage: Stage[Outcome]
    known: dict[str, Answer]  # by question, from the journal of an interrupted run
    asks: tuple[Ask, ...] = ()
    answers: list[Answer | None] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        """Whether the stage can go on; true of one that has asked nothing yet."""
        return None not in self.answers


class _Pipeline:
    """The started samples, each of which waits for engines (in a queue or in flight) or for its tools (in a thread)."""

    def __init__(
        self,
        method: Method,
        queues: Mapping[ModelRole, "_ModelQueue"],
        journal: Journal,
        on_outcome: Callable[[Outcome], None],
    ):
        self._method, self._queues, self._journal, self._on_outcome = method, queues, journal, on_outcome
        self._threads = ThreadPoolExecutor(_TOOL_THREADS, "tools")
        self.running_tools: dict[Future[Outcome | None], _ActiveSample] = {}

    def start_samples(self, waiting: Iterator[SeedSample]) -> bool:
        """Starts samples while there is room for their questions and tools; whether `waiting` is exhausted."""
        # Every queue must have room: a sample may ask the labeller first and the model later.
        while len(self.running_tools) < self._method.config.in_flight and all(
            queue.has_room for queue in self._queues.values()
        ):
            sample = next(waiting, None)
            if sample is None:
                return True
            if sample.id not in self._journal.finished_ids:
                known = self._journal.take_answers(sample.id)
                self._advance(_ActiveSample(sample, distill(sample, self._method), known))
        return False

    def receive_answers(self) -> None:
        """Writes down what the engines have answered, and goes on with the samples that are complete by that."""
        for queue in self._queues.values():
            for question, answer in queue.poll():
                active = question.active
                self._journal.write_answer(active.sample.id, active.asks[question.number].key, answer)
                active.answers[question.number] = answer
                if active.answered:
                    self._advance(active)

    def receive_tool_results(self, timeout: float) -> None:
        """Goes on with the samples whose tools have answered by now, or by `timeout` seconds from now."""
        if self.running_tools:
            done, _ = wait(self.running_tools, timeout=timeout, return_when=FIRST_COMPLETED)
            for future in done:
                self._finish_or_enqueue(self.running_tools.pop(future), future.result())

    def close(self) -> None:
        """Leaves tools that still run behind in their threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _advance(self, active: _ActiveSample) -> None:
        # A stage runs its sample's tools between two questions: such as may block run in a thread, so that the engines
        # do not wait for them. One thread a sample at a time, so a sample's calls are made in their order.
        if may_block(active.sample, self._method.config.act):
            self.running_tools[self._threads.submit(self._run_stage, active)] = active
        else:
            self._finish_or_enqueue(active, self._run_stage(active))

    def _run_stage(self, active: _ActiveSample) -> Outcome | None:
        """Sends complete answers to the stage until it asks something new (None), or ends with an outcome."""
        failure: Rejected | None = None
        # A resumed sample runs through all questions that its journal answers without leaving this loop.
        while failure or active.answered:
            try:
                if failure:
                    active.asks = active.stage.throw(failure)
                elif active.asks:
                    active.asks = active.stage.send(tuple(active.answers))  # type: ignore[arg-type]  # none is None
                else:
                    active.asks = next(active.stage)
            except StopIteration as end:
                return end.value
            active.answers = [active.known.pop(ask.key, None) for ask in active.asks]
            failure = self._render_prompts(active)
        return None

    def _render_prompts(self, active: _ActiveSample) -> Rejected | None:
        """The prompts of the questions; a rejection, to be raised inside the stage, where one cannot be asked."""
        stage = active.asks[0].stage
        try:
            active.prompts = [self._queue_of(ask).prompt(ask) for ask in active.asks]
            check_text("".join(active.prompts))  # a tool's answer may hold what no tokenizer takes
        except CallSyntaxError:
            return Rejected(stage, "a prompt with a lone surrogate")
        except Malformed as problem:
            return Rejected(stage, f"the {problem}")
        return None

    def _finish_or_enqueue(self, active: _ActiveSample, outcome: Outcome | None) -> None:
        """Writes down the outcome of a sample, or queues the questions that it waits for."""
        if outcome is not None:
            self._journal.write_outcome(outcome)
            self._on_outcome(outcome)
            return
        for number, answer in enumerate(active.answers):
            if answer is None:  # the journal did not have it
                question = _Question(active, number, active.prompts[number])
                self._queue_of(active.asks[number]).waiting.append(question)

    def _queue_of(self, ask: Ask) -> "_ModelQueue":
        return self._queues.get(ask.role, self._queues["model"])  # without a labeller the model labels


class _Question(NamedTuple):
    """A question on its way to an engine."""

    active: _ActiveSample
    number: int  # among those that the sample waits for
    prompt: str


class _ModelQueue:
    """The questions for one model, the engines that serve it, and what each of them has in flight."""

    def __init__(self, method: Method, tokenizer: Any, engines: Sequence[Engine]):
        self.waiting: deque[_Question] = deque()
        self._config, self._engines, self._template = method.config, engines, as_chat_template(tokenizer)
        self._tokenizer = self._template.tokenizer
        self._capacity = method.config.in_flight * len(engines)
        self._in_flight: dict[str, _Question] = {}  # by request id
        self._loads = [0] * len(engines)  # requests in flight, by engine

    @property
    def has_room(self) -> bool:
        """Whether fewer questions wait or are in flight than the engines take."""
        return len(self.waiting) + len(self._in_flight) < self._capacity

    @property
    def busy(self) -> bool:
        """Whether any question waits or is in flight."""
        return bool(self.waiting or self._in_flight)

    def prompt(self, ask: Ask) -> str:
        """The text of a question's prompt. Raises `Malformed` where the chat template fails."""
        if ask.plain:
            return str(ask.messages[0]["content"])
        return render_chat(self._template, ask.messages, ask.tools, add_generation_prompt=True)

    def submit(self) -> None:
        """Hands waiting questions to the engines with the fewest in flight."""
        count = min(len(self.waiting), self._capacity - len(self._in_flight))
        if not count:
            return
        # One call of the tokenizer for all, which it spreads over its threads, and one submit an engine.
        batch = [self.waiting.popleft() for _ in range(count)]
        encoded = self._tokenizer([question.prompt for question in batch], add_special_tokens=False)
        requests: list[list[Request]] = [[] for _ in self._engines]
        for question, ids in zip(batch, encoded["input_ids"], strict=True):
            engine = min(range(len(self._engines)), key=self._loads.__getitem__)
            request = self._request(question, ids)
            requests[engine].append(request)
            self._loads[engine] += 1
            self._in_flight[str(request.id)] = question
        for engine, group in enumerate(requests):
            if group:
                self._engines[engine].submit(group)

    def poll(self) -> Iterator[tuple[_Question, Answer]]:
        """The questions that have been answered since the last call, with their answers."""
        for number, engine in enumerate(self._engines):
            if not self._loads[number]:
                continue
            for sample in engine.poll():
                self._loads[number] -= 1
                yield self._in_flight.pop(str(sample.request_id)), self._answer(sample)

    def _request(self, question: _Question, ids: Sequence[int]) -> Request:
        config, sample_id = self._config, question.active.sample.id
        ask = question.active.asks[question.number]
        sampling = config.decompose if ask.stage == "decompose" else config.reason
        seed = request_seed(config.seed, sample_id, ask.key)
        return Request(tuple(ids), sampling.params(seed), id=f"{sample_id}/{ask.key}")

    def _answer(self, sample: Sample) -> Answer:
        # Special tokens stay in the text: thought and call tags are such tokens in some vocabularies.
        text = self._tokenizer.decode(sample.content_ids, skip_special_tokens=False)
        return Answer(text, sample.finish_reason, len(sample.prompt_ids), len(sample.ids))
