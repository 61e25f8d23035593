"""Act (D-CORE section 3.1): what the tools answer to a subtask's call, replayed from the record or by running it.

An environment speaks the tool world's protocol (reset, call, observe, done) and never raises for what a model wrote.
Calls come from parsed JSON and are data all the way.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import takewhile
from threading import Thread
from typing import Any, Literal

from dcore_jax.calls import Call, calls_equal
from dcore_jax.distill.ask import Rejected
from dcore_jax.distill.sample import SeedSample
from dcore_jax.toolworld import Environment, Observation, Task, ToolWorld
from dcore_jax.toolworld.task import output_text

Act = Literal["replay", "execute"]


class Recorded:
    """A sample's recorded responses as an environment.

    In order: the n-th call gets the n-th response, whatever it says (the release's replay). By content: a call gets the
    response of the equal reference call, and an error where there is none.
    """

    def __init__(self, *, by_content: bool = False):
        self._by_content = by_content
        self._left: list[tuple[Call, str]] = []
        self._seen: list[Observation] = []

    def reset(self, task: SeedSample) -> None:
        """Start again with the sample's reference and responses."""
        self._left = list(zip(task.reference, task.responses))
        self._seen = []

    def call(self, call: Call) -> Observation:
        """The recorded response; an observation with an error where none is left."""
        matches = (
            i
            for i, (known, _) in enumerate(self._left)
            if not self._by_content or calls_equal([call], [known])
        )
        found = next(matches, None)
        if found is None:
            message = "no response to this call was recorded"
            observation = Observation(output_text({"error": message}), message)
        else:
            observation = Observation(self._left.pop(found)[1])
        self._seen.append(observation)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        return tuple(self._seen)

    @property
    def done(self) -> bool:
        return not self._left


class Bounded:
    """Another environment, held to a time and a size: what takes longer, writes more or raises is an observation.

    A call that does not come back in time is left behind in its thread, and every later call is an error.
    """

    def __init__(self, inside: Environment, *, seconds: int | float = 10.0, max_chars: int = 16_384):
        self._inside, self._seconds, self._max_chars = inside, seconds, max_chars
        self._seen: list[Observation] = []
        self._stuck = False

    def reset(self, task: Any) -> None:
        """Raises what the environment itself raises: a task that cannot start is not the model's doing."""
        self._seen, self._stuck = [], False
        self._inside.reset(task)

    def call(self, call: Call) -> Observation:
        observation = self._error("an earlier call has not come back") if self._stuck else self._run(call)
        self._seen.append(observation)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        return tuple(self._seen)

    @property
    def done(self) -> bool:
        return self._stuck or self._inside.done

    def _run(self, call: Call) -> Observation:
        future: Future[Observation] = Future()

        def work() -> None:
            try:
                future.set_result(self._inside.call(call))
            except (
                BaseException
            ) as error:  # a tool may raise anything, SystemExit too: it ends its thread only
                future.set_exception(error)

        Thread(target=work, daemon=True).start()
        try:
            observation = future.result(self._seconds)
        except TimeoutError:
            self._stuck = not future.done()
            return self._error(f"{str(call.name)[:80]} took longer than {self._seconds:g} s")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return self._error(f"{str(call.name)[:80]} failed: {type(error).__name__}: {error}"[:400])
        if len(observation.content) > self._max_chars:
            return self._error(f"{str(call.name)[:80]}: output of over {self._max_chars} characters")
        return observation

    def _error(self, message: str) -> Observation:
        return Observation(output_text({"error": message}), message)


def check_task(sample: SeedSample, act: Act) -> None:
    """Raises Rejected with stage `act` where `execute` has nothing to act in."""
    if act == "execute" and sample.task is None:
        raise Rejected("act", "nothing to execute in: the sample has recorded responses only")


def takes_time(sample: SeedSample, act: Act) -> bool:
    """Whether the sample's tools may: those of another project's environment, not a record and not the tool world."""
    return act == "execute" and sample.task is not None and not isinstance(sample.task, Task)


def check_answerable(sample: SeedSample, act: Act) -> None:
    """Raises Rejected with stage `act` where a chain of the sample's calls cannot be answered, whatever a model says."""
    check_task(sample, act)
    if act == "replay" and len(sample.responses) < len(sample.reference) - 1:
        raise Rejected("act", "no recorded response for a call that others follow")


def recorded_responses(sample: SeedSample, calls: Sequence[Call]) -> tuple[str, ...]:
    """The recorded responses to other calls than the reference's, as far as there are any: up to the first without one."""
    recorded = Recorded(by_content=True)
    recorded.reset(sample)
    found = (recorded.call(call) for call in calls)
    return tuple(observation.content for observation in takewhile(lambda seen: seen.error is None, found))


def started(sample: SeedSample, act: Act, *, by_content: bool = False) -> Environment:
    """The environment of a sample, at its beginning.

    Raises:
      Rejected: `execute` for a sample that has no task to act in; stage `act`.
    """
    check_task(sample, act)
    if act == "replay":
        recorded = Recorded(by_content=by_content)
        recorded.reset(sample)
        return recorded  # type: ignore[return-value]  # it starts from a sample, not from a Task
    if isinstance(sample.task, Task):
        world = ToolWorld()  # bounds its own work and output
        world.reset(sample.task)
        return world
    from dcore_jax.distill.adapters import adapter_for

    bounded = Bounded(adapter_for(sample.task))
    bounded.reset(sample.task)
    return bounded


def respond(environment: Environment, calls: Sequence[Call]) -> tuple[str, ...]:
    """What the tools answer to the calls, one text each."""
    return tuple(environment.call(call).content for call in calls)
