"""A task of a benchmark as a conversation of the player."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dcore_jax.calls import Call, ParsedResponse, parse_any_response, split_thought
from dcore_jax.evaluation.harness.process import HarnessProcess
from dcore_jax.evaluation.prompting import PromptingConfig
from dcore_jax.player import Opening, Session, Turn


class Part(NamedTuple):
    """One conversation of a task: most tasks have one, ToolTalk's one for each turn of the assistant."""

    task: str
    part: str
    trial: int
    category: str


class HarnessSession(Session):
    """Speaks to the benchmark's process. `trajectory` is what it kept of the conversation, after `close`."""

    def __init__(
        self,
        process: HarnessProcess,
        part: Part,
        conversation: Mapping[str, Any],
        prompting: PromptingConfig | None = None,
    ):
        self.part, self.trajectory = part, None
        self.id = f"{part.task}/{part.part}/{part.trial}"
        self._process, self._conversation, self._done = process, dict(conversation), False
        self._prompting = prompting or PromptingConfig()
        self._text, self._said = "", True

    def open(self) -> Opening:
        """See Session.open."""
        part = self.part
        opening = self._process.ask(
            "open", session=self.id, task=part.task, part=part.part, trial=part.trial, **self._conversation
        )
        return Opening(self._prompting.messages(opening["messages"]), opening["tools"])

    def parse(self, text: str) -> ParsedResponse | None:
        """See Session.parse: as the template has it; the text is kept, since a benchmark reads the words beside a call."""
        self._text, self._said = text, False
        return None

    def call(self, call: Call) -> str:
        """See Session.call. After the call that ended the conversation no further one is run."""
        if self._done:
            return "the conversation has ended"
        words = "" if self._said else parse_any_response(self._text, [call.name])[0].reply
        self._said = True
        answer = self._process.ask(
            "call", session=self.id, name=call.name, arguments=dict(call.arguments), text=words
        )
        self._done = bool(answer["done"])
        return str(answer["content"])

    @property
    def done(self) -> bool:
        """See Session.done."""
        return self._done

    def reply(self, turn: Turn) -> Sequence[dict[str, Any]] | None:
        """See Session.reply. A turn whose calls cannot be read is said as it is: so does a server without a parser."""
        words = turn.parsed.reply
        if turn.error is not None:
            words = split_thought(turn.text)[1].strip()
        answer = self._process.ask("reply", session=self.id, text=words, error=turn.error)
        return answer["messages"]

    def close(self) -> None:
        """See Session.close."""
        self.trajectory = self._process.ask("close", session=self.id)
