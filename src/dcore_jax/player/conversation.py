"""One conversation under way: its tokens, its messages, and what its session does between two turns."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from dcore_jax.calls import Call, ParsedResponse
from dcore_jax.data.files import Malformed
from dcore_jax.engines.engine import Sample
from dcore_jax.errors import UserError, first_line
from dcore_jax.player.history import History
from dcore_jax.player.limits import Limits
from dcore_jax.player.session import Cut, Ended, Message, Played, Session, TokenSequence, Tools, Turn
from dcore_jax.player.time_limit import TookTooLong, run_limited
from dcore_jax.toolworld.environment import error_observation

NOT_ENDED = "the turn did not end"
_SHOWN_NAME, _SHOWN_ERROR = 80, 400  # characters
_CUT_MARK = " ... (cut)"
Result = TypeVar("Result")


@dataclass
class Conversation:
    """Tokens and messages so far. `begin` and `take` may run in a thread of their own: they touch nothing but this."""

    session: Session
    history: History
    limits: Limits
    ended: Ended | None = None
    error: str | None = None
    ids: list[int] = field(
        default_factory=list
    )  # of the current sequence: the next prompt, at the model's turn
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    tools: Tools = None
    cut: Counter[str] = field(default_factory=Counter)
    weight_version: int = 0
    reward: float | None = None
    _parts: list[tuple[int, Turn]] = field(
        default_factory=list
    )  # turns of the current sequence, with their starts
    _sequences: list[TokenSequence] = field(default_factory=list)
    _abandoned: bool = False  # a call has not come back: the session may still be changing

    @property
    def room(self) -> int:
        """Tokens that the next turn may have."""
        return min(self.limits.max_tokens, self.limits.max_length - len(self.ids))

    def begin(self) -> None:
        """Opens the session and renders the first prompt."""
        self._begin()
        if self.ended is not None:
            self._finish()

    def take(self, sample: Sample) -> None:
        """Adds the model's turn, lets the session answer, and renders the next prompt, or ends."""
        self._take(sample)
        if self.ended is not None:
            self._finish()

    def _begin(self) -> None:
        try:
            opening = self._limited(self.session.open)
        except UserError:
            raise  # of whoever asked for this session, not of the model
        except (TookTooLong, Exception) as error:
            self._fail("the session did not open", error)
            return
        self.messages, self.tools = list(opening.messages), opening.tools
        try:
            self.ids = list(self.history.first(self.messages, self.tools))
        except Malformed as error:
            self._fail("the chat template refuses the opening", error)
            return
        if self.room < 1:
            self._end("length")

    def _take(self, sample: Sample) -> None:
        turn = self._turn(sample)
        self._parts.append((len(self.ids), turn))
        before, so_far = list(self.messages), [*self.ids, *turn.ids]
        if sample.finish_reason == "overlong":
            self._end("length")
            return
        if turn.calls:
            turn, new = self._observe(turn)
        else:
            new = self._reply(turn)
        self.turns.append(turn)
        self.messages.append(self.history.message(turn))
        if self.ended is None and new is not None:
            self._go_on(before, so_far, turn, new)
        elif new:
            self.messages += new
        self.ids = so_far if self.ended is not None else self.ids

    def _turn(self, sample: Sample) -> Turn:
        """The sample, read."""
        opened = self.history.opened(self.ids)
        # A stop token is left out, one that the engine does not return is not there.
        text = opened + self.history.tokenizer.decode(list(sample.content_ids))
        try:
            parsed = self.session.parse(text) or self.history.read(text, self.tools)
        except Exception as error:  # a reader of the session's own, given any text
            parsed = ParsedResponse(
                None, None, text.strip(), error=f"{type(error).__name__}: {first_line(error)}"
            )
        if sample.finish_reason != "stop":
            self.cut["turns"] += 1
            parsed = parsed._replace(calls=None, error=NOT_ENDED)
        self.weight_version = sample.weight_version
        return Turn(
            len(self.turns), text, parsed, sample.ids, sample.logprobs, len(self.ids), sample.finish_reason
        )

    def _observe(self, turn: Turn) -> tuple[Turn, list[Message] | None]:
        """Runs the turn's calls, in order; every one is answered. None for the messages where the session is done."""
        contents = [self._call(call) for call in turn.calls]
        number = sum(len(earlier.calls) for earlier in self.turns)
        messages = [
            {"role": "tool", "name": call.name, "content": content, "tool_call_id": f"call{number + i:05d}"}
            for i, (call, content) in enumerate(zip(turn.calls, contents))
        ]
        turn = replace(turn, observations=tuple(contents))
        if not self._abandoned and self.session.done:
            self._end("done")
        return turn, messages

    def _call(self, call: Call) -> str:
        """The observation of one call, with an error where there is no other."""
        name = str(call.name)[:_SHOWN_NAME]
        if self._abandoned:
            return error_observation("an earlier call has not come back").content
        self.cut["made"] += 1
        if self.cut["made"] > self.limits.max_calls:
            self.cut["calls"] += 1
            return error_observation(f"no calls left after {self.limits.max_calls}").content
        try:
            content = self._limited(lambda: self.session.call(call), self.limits.call_seconds)
        except TookTooLong:
            self._abandoned = True
            self.cut["timeouts"] += 1
            return error_observation(f"{name} took longer than {self.limits.call_seconds:g} s").content
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a tool may raise anything: the model reads it
            self.cut["failures"] += 1
            return error_observation(f"{name} failed: {type(error).__name__}: {error}"[:_SHOWN_ERROR]).content
        if not isinstance(content, str):
            self.cut["failures"] += 1
            return error_observation(f"{name} failed: it returned {type(content).__name__}, not text").content
        if len(content) > self.limits.max_observation:
            self.cut["observations"] += 1
            content = content[: self.limits.max_observation] + _CUT_MARK
        return content

    def _reply(self, turn: Turn) -> list[Message] | None:
        """What the session says to a turn without calls; None, and ended, where it says nothing more."""
        if self._abandoned:
            self._end("failed", "a call has not come back, so the session was asked nothing more")
            return None
        try:
            found = self._limited(lambda: self.session.reply(turn))
        except UserError:
            raise
        except (TookTooLong, Exception) as error:
            self._fail("the session did not reply", error)
            return None
        if found is None:
            self._end("truncated" if turn.finish_reason == "length" else "done")
            return None
        return [dict(message) for message in found]

    def _go_on(self, before: Sequence[Message], so_far: list[int], turn: Turn, new: list[Message]) -> None:
        """Renders the prompt of the next turn, or ends where there is none."""
        if len(self.turns) >= self.limits.max_turns:
            self.messages += new
            self._end("turns")
            return
        try:
            prompt = self.history.next(so_far, before, turn, new, self.tools)
        except Malformed as error:
            self._fail("the chat template refuses what follows", error)
            return
        if len(prompt) >= self.limits.max_length:
            self.cut["messages"] += len(new)
            self._end("length")
            return
        self.messages += new
        if tuple(prompt[: len(so_far)]) != tuple(so_far):
            self._sequences.append(_sequence(so_far, self._parts))
            self._parts = []
        self.ids = list(prompt)

    def _finish(self) -> None:
        """Asks for the reward and closes the session."""
        try:
            if not self._abandoned:
                self.reward = self._limited(self.session.reward)
            self._limited(self.session.close, self.limits.call_seconds)
        except (TookTooLong, Exception) as error:
            self._fail("the session did not end well", error)

    def played(self) -> Played:
        """The conversation as it ended."""
        assert self.ended is not None
        counts = {name: self.cut[name] for name in Cut.__dataclass_fields__}
        return Played(
            id=self.session.id,
            session=self.session,
            sequences=(*self._sequences, _sequence(self.ids, self._parts)),
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            ended=self.ended,
            reward=self.reward,
            error=self.error,
            cut=Cut(**counts),
            weight_version=self.weight_version,
        )

    def _limited(self, function: Callable[[], Result], seconds: float | None = None) -> Result:
        if self.session.instant:
            return function()
        return run_limited(function, self.limits.reply_seconds if seconds is None else seconds)

    def _end(self, ended: Ended, error: str | None = None) -> None:
        self.ended, self.error = ended, error

    def _fail(self, what: str, error: BaseException) -> None:
        why = (
            f"after {self.limits.reply_seconds:g} s"
            if isinstance(error, TookTooLong)
            else f"{type(error).__name__}: {first_line(error)}"[:_SHOWN_ERROR]
        )
        self._end("failed", f"{what}: {why}")


def _sequence(ids: Sequence[int], parts: Sequence[tuple[int, Turn]]) -> TokenSequence:
    """The ids, with what was sampled in them."""
    sampled, logprobs = np.zeros(len(ids), bool), np.zeros(len(ids), np.float32)
    for start, turn in parts:
        sampled[start : start + len(turn.ids)] = True
        logprobs[start : start + len(turn.ids)] = turn.logprobs
    return TokenSequence(np.asarray(ids, np.int32), sampled, logprobs)
