"""Many conversations with one engine: whichever has its turn asks again at once, so the engine's slots stay busy."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial

import numpy as np

from dcore_jax.engines.engine import Engine, Request, SamplingParams
from dcore_jax.player.conversation import Conversation
from dcore_jax.player.history import History
from dcore_jax.player.limits import Limits
from dcore_jax.player.session import Played, Session
from dcore_jax.player.time_limit import in_thread
from dcore_jax.progress import progress_bar

_MOMENT = 0.01  # seconds


def play(
    sessions: Iterable[Session],
    engine: Engine,
    history: History,
    limits: Limits | None = None,
    *,
    sampling: SamplingParams | None = None,
    progress: bool = False,
    desc: str = "playing",
    on_played: Callable[[Played], None] | None = None,
) -> list[Played]:
    """Plays every session to its end, `limits.at_once` at the same time; in the order given.

    A session is opened when it begins and closed when it ends. Its methods run in threads beside the engine, each with a time
    limit, unless it is `instant`. What a tool or a session raises stays in its own conversation.

    Args:
      sessions: may be a generator; it is read as conversations begin.
      history: `new_bridge(tokenizer)` appends ids, `new_rerender(tokenizer)` renders every prompt anew.
      sampling: greedy by default; `max_tokens` is the limits'. Each turn has a seed of its own, drawn from `seed`, the session's
        place and the turn's number.
      on_played: given each conversation as it ends, in this thread: to write it down.

    Raises:
      UserError: what a session raises as such; an id outside the engine's vocabulary.
      RuntimeError: the engine has requests of others in flight.
    """
    if engine.in_flight:
        raise RuntimeError(f"{engine.in_flight} requests are in flight; poll until none is, then play")
    run = _Run(engine, history, limits or Limits(), sampling or SamplingParams(temperature=0.0))
    listed = sessions if isinstance(sessions, list | tuple) else list(sessions)
    bar = progress_bar(len(listed), desc=desc, unit="conversation", transient=True, disable=not progress)
    try:
        for played in run.conversations(listed):
            bar.update(1)
            if on_played is not None:
                on_played(played)
    finally:
        bar.close()
    return [run.played[number] for number in range(len(listed))]


class _Run:
    def __init__(self, engine: Engine, history: History, limits: Limits, sampling: SamplingParams):
        self.engine, self.history, self.limits, self.sampling = engine, history, limits, sampling
        self.played: dict[int, Played] = {}
        self._asking: dict[
            str, tuple[int, Conversation]
        ] = {}  # by request id: those whose turn the engine samples
        self._working: dict[Future[None], tuple[int, Conversation]] = {}  # those whose session is at work
        self._fresh: list[Future[None]] = []  # of them, begun since the engine was last polled

    def conversations(self, sessions: Sequence[Session]) -> Iterator[Played]:
        """Every conversation as it ends."""
        waiting = deque(enumerate(sessions))
        while waiting or self._asking or self._working:
            while waiting and len(self._asking) + len(self._working) < self.limits.at_once:
                number, session = waiting.popleft()
                conversation = Conversation(session, self.history, self.limits)
                yield from self._work(number, conversation, conversation.begin)
            yield from self._collect()
            if self._asking:
                for sample in self.engine.poll():
                    number, conversation = self._asking.pop(str(sample.request_id))
                    yield from self._work(number, conversation, partial(conversation.take, sample))

    def _work(self, number: int, conversation: Conversation, step: Callable[[], None]) -> Iterator[Played]:
        if conversation.session.instant:
            step()
            yield from self._after(number, conversation)
        else:
            future = in_thread(step)
            self._working[future] = (number, conversation)
            self._fresh.append(future)

    def _collect(self) -> Iterator[Played]:
        """Conversations whose sessions have answered. Most do at once: those are waited for a moment, so that they are in the
        engine's next batch."""
        if not self._working:
            return
        wait(self._fresh, _MOMENT)
        self._fresh.clear()
        done = [future for future in self._working if future.done()]
        if not done and not self._asking:
            done = list(wait(self._working, 0.5, FIRST_COMPLETED).done)
        for future in done:
            number, conversation = self._working.pop(future)
            future.result()  # raises what the session raised as a user's mistake
            yield from self._after(number, conversation)

    def _after(self, number: int, conversation: Conversation) -> Iterator[Played]:
        """Asks for the next turn, or ends the conversation."""
        if conversation.ended is None:
            turn = len(conversation.turns)
            sampling = replace(
                self.sampling,
                max_tokens=conversation.room,
                seed=turn_seed(self.sampling.seed, number, turn),
            )
            request = Request(tuple(conversation.ids), sampling, f"{number}/{turn}")
            self._asking[str(request.id)] = (number, conversation)
            self.engine.submit([request])
            return
        self.played[number] = conversation.played()
        yield self.played[number]


def turn_seed(seed: int, number: int, turn: int) -> int:
    """The seed of a turn, by the run's seed, the conversation's place and the turn's number."""
    words = np.random.SeedSequence([seed, number, turn]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])
