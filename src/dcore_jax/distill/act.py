"""Act (D-CORE section 3.1): what the tools answer to a subtask's call, replayed from the record or by running it.

Environments follow the tool world's protocol (reset, call, observe, done) and never raise for what a model wrote.
Calls come from parsed JSON and are never evaluated as code.
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
from dcore_jax.toolworld.environment import error_observation

Act = Literal["replay", "execute"]
_SHOWN_NAME, _SHOWN_ERROR = 80, 400  # characters


class ReplayEnvironment:
    """An environment that answers with a sample's recorded responses.

    Args:
      by_content: False: the n-th call gets the n-th response, whatever it says (the release's replay). True: a call gets
        the response of the equal reference call, and an error where there is none.
    """

    def __init__(self, *, by_content: bool = False):
        self._by_content = by_content
        self._remaining: list[tuple[Call, str]] = []
        self._observations: list[Observation] = []

    def reset(self, task: SeedSample) -> None:
        """Starts again with the sample's reference and responses."""
        self._remaining = list(zip(task.reference, task.responses))
        self._observations = []

    def call(self, call: Call) -> Observation:
        """The recorded response; an observation with an error where none is left."""
        matches = (
            i
            for i, (recorded, _) in enumerate(self._remaining)
            if not self._by_content or calls_equal([call], [recorded])
        )
        match = next(matches, None)
        if match is None:
            observation = error_observation("no response to this call was recorded")
        else:
            observation = Observation(self._remaining.pop(match)[1])
        self._observations.append(observation)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        """Every observation since the reset, oldest first."""
        return tuple(self._observations)

    @property
    def done(self) -> bool:
        """Whether every recorded response was given."""
        return not self._remaining


class TimeLimitedEnvironment:
    """Another environment with a timeout and a size limit: a call that exceeds one, or raises, is an observation with an error.

    A call that times out is abandoned in its thread, and every later call is an error: the environment may still be changing.

    Args:
      seconds: timeout of one call.
      max_chars: longest output of one call.
    """

    def __init__(self, inner: Environment, *, seconds: int | float = 10.0, max_chars: int = 16_384):
        self._inner, self._seconds, self._max_chars = inner, seconds, max_chars
        self._observations: list[Observation] = []
        self._timed_out = False

    def reset(self, task: Any) -> None:
        """Raises what the environment itself raises: a task that cannot start is not the model's mistake."""
        self._observations, self._timed_out = [], False
        self._inner.reset(task)

    def call(self, call: Call) -> Observation:
        """The inner environment's observation, or an error."""
        if self._timed_out:
            observation = error_observation("an earlier call has not come back")
        else:
            observation = self._run(call)
        self._observations.append(observation)
        return observation

    def observe(self) -> tuple[Observation, ...]:
        """Every observation since the reset, oldest first."""
        return tuple(self._observations)

    @property
    def done(self) -> bool:
        """Whether the inner environment is done, or a call timed out."""
        return self._timed_out or self._inner.done

    def _run(self, call: Call) -> Observation:
        name = str(call.name)[:_SHOWN_NAME]
        future: Future[Observation] = Future()

        def work() -> None:
            try:
                future.set_result(self._inner.call(call))
            except (
                BaseException
            ) as error:  # a tool may raise anything, even SystemExit: it ends only its thread
                future.set_exception(error)

        # A daemon thread and not an executor's: the process must be able to end while a call hangs.
        Thread(target=work, daemon=True).start()
        try:
            observation = future.result(self._seconds)
        except TimeoutError:  # ours, or one that the tool itself raised: then the call has come back
            self._timed_out = not future.done()
            return error_observation(f"{name} took longer than {self._seconds:g} s")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return error_observation(f"{name} failed: {type(error).__name__}: {error}"[:_SHOWN_ERROR])
        if len(observation.content) > self._max_chars:
            return error_observation(f"{name}: output of over {self._max_chars} characters")
        return observation


def check_task(sample: SeedSample, act: Act) -> None:
    """Raises Rejected with stage `act` where `execute` has no task to act in."""
    if act == "execute" and sample.task is None:
        raise Rejected("act", "nothing to execute in: the sample has recorded responses only")


def may_block(sample: SeedSample, act: Act) -> bool:
    """Whether the sample's tools may take long: another project's environment, unlike a record or the tool world."""
    return act == "execute" and sample.task is not None and not isinstance(sample.task, Task)


def check_answerable(sample: SeedSample, act: Act) -> None:
    """Raises Rejected with stage `act` where the sample's chain of calls cannot be answered, whatever a model says."""
    check_task(sample, act)
    if act == "replay" and len(sample.responses) < len(sample.reference) - 1:
        raise Rejected("act", "no recorded response for a call that others follow")


def recorded_responses(sample: SeedSample, calls: Sequence[Call]) -> tuple[str, ...]:
    """The recorded responses to calls that are not the reference itself, up to the first call that has none."""
    environment = ReplayEnvironment(by_content=True)
    environment.reset(sample)
    observations = (environment.call(call) for call in calls)
    return tuple(found.content for found in takewhile(lambda found: found.error is None, observations))


def start_environment(sample: SeedSample, act: Act, *, by_content: bool = False) -> Environment:
    """The environment of a sample, reset to its task.

    Args:
      by_content: how recorded responses are found; see ReplayEnvironment.

    Raises:
      Rejected: `execute` for a sample that has no task to act in; stage `act`.
    """
    check_task(sample, act)
    if act == "replay":
        replay = ReplayEnvironment(by_content=by_content)
        replay.reset(sample)
        return replay  # type: ignore[return-value]  # it starts from a sample, not from a Task
    if isinstance(sample.task, Task):
        world = ToolWorld()  # has limits of its own
        world.reset(sample.task)
        return world
    from dcore_jax.distill.adapters import adapter_for

    environment = TimeLimitedEnvironment(adapter_for(sample.task))
    environment.reset(sample.task)
    return environment


def respond(environment: Environment, calls: Sequence[Call]) -> tuple[str, ...]:
    """The tools' answers to the calls, one text each."""
    return tuple(environment.call(call).content for call in calls)
