"""Thousands of samples on their way through all stages at once.

A sample moves on as soon as its answers are there; nothing waits for the slowest of a stage. A new sample is let in only
when fewer questions wait than the engines take, so memory is bounded by `in_flight`, not by the number of samples. Tools
that may take their time act in threads, the calls of one sample one after the other. What comes out does not depend on
the order of arrival: each question's seed derives from the sample and the question alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from dcore_jax.calls.bounds import CallSyntaxError, check_text
from dcore_jax.distill.act import takes_time
from dcore_jax.distill.algorithm import Method, distill
from dcore_jax.distill.ask import Answer, Ask, Rejected, Speaker, Stage, request_seed
from dcore_jax.distill.journal import Journal
from dcore_jax.distill.sample import Outcome, SeedSample
from dcore_jax.engines.engine import Engine, Request, Sample

_ACTING = 32  # samples whose tools act at the same time


@dataclass
class _Flight:
    """A sample under way: its stage, the questions it waits for with their prompts, and the answers that are there."""

    sample: SeedSample
    stage: Stage[Outcome]
    known: dict[str, Answer]  # from the journal
    asks: tuple[Ask, ...] = ()
    answers: list[Answer | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def run_pipeline(
    samples: Iterable[SeedSample],
    method: Method,
    tokenizers: Mapping[Speaker, Any],
    engines: Mapping[Speaker, Sequence[Engine]],
    journal: Journal,
    *,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Takes every sample that the journal does not call finished to its outcome; True unless it was stopped before.

    Args:
      samples: with ids that differ. Drawn one by one, when there is room.
      tokenizers: of the model that is asked, and of the labeller where that is another one.
      engines: that serve them, none of them in two places; each takes `in_flight` questions at a time.
      on_outcome: told of each outcome after the journal.
      stopped: asked between rounds; what is in flight then is lost and asked again by the next start.
    """
    waiting = iter(samples)
    lines = {speaker: _Line(method, tokenizers[speaker], engines[speaker]) for speaker in engines}
    exhausted = False

    acting: dict[Future[Outcome | None], _Flight] = {}
    threads = ThreadPoolExecutor(_ACTING, "tools")

    def advance(flight: _Flight) -> None:
        if takes_time(flight.sample, method.config.act):
            acting[threads.submit(step, flight)] = flight
        else:
            settle(flight, step(flight))

    def step(flight: _Flight) -> Outcome | None:
        """Sends complete answers to the stage until it asks something new (None), or is at its end."""
        failure: Rejected | None = None
        while failure or None not in flight.answers:
            try:
                if failure:
                    flight.asks = flight.stage.throw(failure)
                else:
                    flight.asks = flight.stage.send(tuple(flight.answers) if flight.asks else None)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value
            flight.answers = [flight.known.pop(ask.key, None) for ask in flight.asks]
            try:
                failure, flight.texts = None, [line_of(ask).text(ask) for ask in flight.asks]
                check_text("".join(flight.texts))  # what a tool answered may hold what no tokenizer takes
            except CallSyntaxError:
                failure = Rejected(flight.asks[0].stage, "a prompt with a lone surrogate")
            except (
                Exception
            ) as error:  # a chat template is a program of the model's author: it may raise anything
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                failure = Rejected(flight.asks[0].stage, f"the chat template failed: {first[:100]}")
        return None

    def settle(flight: _Flight, outcome: Outcome | None) -> None:
        """Writes down the end of a sample, or queues what it asks."""
        if outcome is not None:
            journal.finished(outcome)
            on_outcome(outcome)
            return
        for i, answer in enumerate(flight.answers):
            if answer is None:
                line_of(flight.asks[i]).queue.append((flight, i, flight.texts[i]))

    def line_of(ask: Ask) -> _Line:
        return lines.get(ask.of, lines["model"])

    try:
        while not stopped():
            room = method.config.in_flight
            while not exhausted and len(acting) < room and all(line.wants_more for line in lines.values()):
                sample = next(waiting, None)
                exhausted = sample is None
                if sample is not None and sample.id not in journal.finished_ids:
                    advance(_Flight(sample, distill(sample, method), journal.take_answers(sample.id)))
            for line in lines.values():
                line.submit()
            journal.flush()
            asking = any(line.busy for line in lines.values())
            if exhausted and not acting and not asking:
                return True
            for line in lines.values():
                for flight, i, answer in line.poll():
                    journal.answered(flight.sample.id, flight.asks[i].key, answer)
                    flight.answers[i] = answer
                    if None not in flight.answers:
                        advance(flight)
            if acting:
                done, _ = wait(acting, timeout=0 if asking else 0.05, return_when=FIRST_COMPLETED)
                for future in done:
                    settle(acting.pop(future), future.result())
        return False
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        journal.flush()


class _Line:
    """The questions for one model, the engines that serve it, and what each of them has in flight."""

    def __init__(self, method: Method, tokenizer: Any, engines: Sequence[Engine]):
        self.queue: deque[tuple[_Flight, int, str]] = deque()  # with the prompt's text
        self._method, self._tokenizer, self._engines = method, tokenizer, engines
        self._each = method.config.in_flight
        self._in_flight: dict[str, tuple[_Flight, int]] = {}
        self._loads = [0] * len(engines)

    @property
    def wants_more(self) -> bool:
        return len(self.queue) + len(self._in_flight) < self._each * len(self._engines)

    @property
    def busy(self) -> bool:
        return bool(self.queue or self._in_flight)

    def submit(self) -> None:
        """Hands waiting questions to the engines with the fewest in flight."""
        room = min(len(self.queue), self._each * len(self._engines) - len(self._in_flight))
        if not room:
            return
        batch = [self.queue.popleft() for _ in range(room)]
        requests: list[list[Request]] = [[] for _ in self._engines]
        encoded = self._tokenizer([text for _, _, text in batch], add_special_tokens=False)["input_ids"]
        for (flight, i, _), ids in zip(batch, encoded, strict=True):
            ask, config = flight.asks[i], self._method.config
            stage = config.decompose if ask.stage == "decompose" else config.reason
            engine = min(range(len(self._engines)), key=self._loads.__getitem__)
            seed = request_seed(config.seed, flight.sample.id, ask.key)
            name = f"{flight.sample.id}/{ask.key}"
            self._loads[engine] += 1
            self._in_flight[name] = (flight, i)
            requests[engine].append(Request(tuple(ids), stage.params(seed), id=name))
        for number, group in enumerate(requests):
            if group:
                self._engines[number].submit(group)

    def poll(self) -> Iterator[tuple[_Flight, int, Answer]]:
        """What has come back."""
        for number, engine in enumerate(self._engines):
            if not self._loads[number]:
                continue
            for sample in engine.poll():
                flight, i = self._in_flight.pop(str(sample.request_id))
                self._loads[number] -= 1
                yield flight, i, self._answer(sample)

    def _answer(self, sample: Sample) -> Answer:
        text = self._tokenizer.decode(sample.content_ids, skip_special_tokens=False)
        return Answer(text, sample.finish_reason, len(sample.prompt_ids), len(sample.ids))

    def text(self, ask: Ask) -> str:
        """The prompt of a question."""
        if ask.plain:
            return str(ask.messages[0]["content"])
        return str(
            self._tokenizer.apply_chat_template(
                list(ask.messages), tools=list(ask.tools) or None, add_generation_prompt=True, tokenize=False
            )
        )
