"""How a conversation becomes the ids of the next prompt: ids appended (`Bridge`), or everything rendered anew (`Rerender`).

A chat template writes whole conversations. Rendered again after a turn, it drops thoughts, normalises calls, and its text may be
tokenised otherwise than it was sampled: then the model is trained on ids that it did not sample. `Bridge` renders once. After
that it asks the template only for what stands between the end of a turn and the next generation prompt, and appends it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dcore_jax.calls import CallFormat, ParsedResponse, parse_any_response, parse_response
from dcore_jax.calls.thought import CLOSE_THOUGHT, OPEN_THOUGHT
from dcore_jax.data.chat_template import ChatTemplate, as_chat_template, render_chat
from dcore_jax.data.files import Malformed
from dcore_jax.data.notation import template_notation
from dcore_jax.data.tool_schemas import tool_name
from dcore_jax.errors import UserError
from dcore_jax.player.session import Message, Tools, Turn
from dcore_jax.weights.stop_tokens import end_of_turn_ids

_PLACEHOLDER = "placeholder"  # stands for the model's turn while the template is asked what follows it
Ids = tuple[int, ...]


@runtime_checkable
class History(Protocol):
    """What the player needs to know of templates and tokenizers."""

    @property
    def tokenizer(self) -> Any: ...

    def first(self, messages: Sequence[Message], tools: Tools) -> Ids:
        """The prompt of the first turn. Raises Malformed where the template refuses it."""

    def next(
        self,
        so_far: Sequence[int],
        messages: Sequence[Message],
        turn: Turn,
        new: Sequence[Message],
        tools: Tools,
    ) -> Ids:
        """The whole prompt of the next turn.

        Args:
          so_far: the prompt of the last turn, and what was sampled.
          messages: those before the last turn.
          new: those after it: observations, or the user's.
        """

    def opened(self, prompt: Sequence[int]) -> str:
        """What the generation prompt at the end of `prompt` has written of the turn already: `<think>`, or nothing."""

    def message(self, turn: Turn) -> Message:
        """The turn as a message of the history."""

    def read(self, text: str, tools: Tools) -> ParsedResponse:
        """The parts of a turn."""


@dataclass(frozen=True)
class _Templated:
    template: ChatTemplate
    call_format: CallFormat | None  # the notation of calls; None: any is read
    end_ids: frozenset[int]  # ids that end a turn

    @property
    def tokenizer(self) -> Any:
        """The template's."""
        return self.template.tokenizer

    def first(self, messages: Sequence[Message], tools: Tools) -> Ids:
        """See History.first."""
        return self._ids(render_chat(self.template, messages, tools, add_generation_prompt=True))

    def opened(self, prompt: Sequence[int]) -> str:
        """See History.opened."""
        text = self.tokenizer.decode(list(prompt[-8:]))
        return OPEN_THOUGHT + "\n" if text.rstrip().endswith(OPEN_THOUGHT) else ""

    def read(self, text: str, tools: Tools) -> ParsedResponse:
        """See History.read."""
        if self.call_format is not None:
            return parse_response(text, self.call_format)
        return parse_any_response(text, [tool_name(dict(tool)) for tool in tools or ()])[0]

    def _ids(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Bridge(_Templated):
    """Appends ids: the prompt of a turn begins with the very ids of the turn before, prompt and sample.

    Between them stands what the template writes there: the end of the turn where the sample does not hold it (the engine stopped
    before it, or the turn was cut, then with the end of a thought that was still open), the separator after it, the new messages
    and the generation prompt. `new_bridge` makes one.
    """

    def next(
        self,
        so_far: Sequence[int],
        messages: Sequence[Message],
        turn: Turn,
        new: Sequence[Message],
        tools: Tools,
    ) -> Ids:
        """See History.next. Raises Malformed where the template has no end of a turn, or refuses the messages."""
        return (*so_far, *self.between(messages, turn, new, tools))

    def message(self, turn: Turn) -> Message:
        """The text as sampled."""
        return {"role": "assistant", "content": turn.text}

    def between(self, messages: Sequence[Message], turn: Turn, new: Sequence[Message], tools: Tools) -> Ids:
        """The ids between the last sampled one and the first of the next turn."""
        ids = self._ids(self._after(messages, turn, new, tools))
        if not ids or ids[0] not in self.end_ids:
            raise Malformed("the end of a turn is no token of its own")
        if turn.ids and turn.ids[-1] in self.end_ids:
            return ids[1:]
        open_thought = turn.text.lstrip().startswith(OPEN_THOUGHT) and CLOSE_THOUGHT not in turn.text
        return (*self._ids(CLOSE_THOUGHT), *ids) if open_thought else ids

    def _after(self, messages: Sequence[Message], turn: Turn, new: Sequence[Message], tools: Tools) -> str:
        """The text from the end token of a turn on, with the messages after it and the generation prompt."""
        reason = Malformed("the template writes no end of a turn")
        for turn_message, mark in self._stand_ins(messages, turn, new):
            for before in (list(messages), _short(messages)):
                conversation = [*before, turn_message, *new]
                try:
                    text = render_chat(self.template, conversation, tools, add_generation_prompt=True)
                except Malformed as error:
                    reason = error
                    continue
                _, found, after = text.rpartition(mark)
                ends = [at for token in self._end_texts() if (at := after.find(token)) >= 0]
                if found and ends:
                    return after[min(ends) :]
        raise reason

    def _stand_ins(
        self, messages: Sequence[Message], turn: Turn, new: Sequence[Message]
    ) -> list[tuple[Message, str]]:
        """Messages for the turn, each with a mark that occurs nowhere else: with its calls where tools answer them, then as text.

        Some templates take a tool's answer only after a structured call, others no structured call at all.
        """
        texts, mark = str([*messages, *new]), _PLACEHOLDER
        while mark in texts:
            mark += "x"
        plain = {"role": "assistant", "content": mark}
        if not (turn.calls and any(message["role"] == "tool" for message in new)):
            return [(plain, mark)]
        calls = [
            {
                "type": "function",
                "id": message.get("tool_call_id", ""),
                "function": {"name": call.name, "arguments": {**call.arguments, "mark": mark}},
            }
            for call, message in zip(turn.calls, new)
        ]
        return [({"role": "assistant", "content": "", "tool_calls": calls}, mark), (plain, mark)]

    def _end_texts(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.end_ids]


@dataclass(frozen=True)
class Rerender(_Templated):
    """Renders the whole conversation for every turn, as a stateless server or a benchmark does.

    A prompt then need not begin with the ids of the one before, and `Played.sequences` has one sequence per turn at most.
    """

    message_of: Callable[[Turn], Message]

    def next(
        self,
        so_far: Sequence[int],
        messages: Sequence[Message],
        turn: Turn,
        new: Sequence[Message],
        tools: Tools,
    ) -> Ids:
        """See History.next."""
        return self.first([*messages, self.message(turn), *new], tools)

    def message(self, turn: Turn) -> Message:
        """What `message_of` says."""
        return self.message_of(turn)


def new_bridge(
    tokenizer: Any, *, call_format: CallFormat | None = None, end_ids: Sequence[int] | frozenset[int] = ()
) -> Bridge:
    """A bridge for that tokenizer's chat template.

    Args:
      tokenizer: with a chat template, or a `ChatTemplate`.
      call_format: by default the notation in which the template asks for calls; where it shows no tools, any is read.
      end_ids: further ids that end a turn, as `weights.stop_token_ids` has them for a model's folder.

    Raises:
      UserError: no chat template, or one whose turns end with no token of the tokenizer's.
    """
    template = as_chat_template(tokenizer)
    ends = end_of_turn_ids(template.tokenizer) | frozenset(end_ids)
    if not ends:
        raise UserError(
            "the tokenizer has no token that ends a turn, so turns cannot be appended to one another"
        )
    return Bridge(template, call_format or template_notation(template), ends)


def new_rerender(
    tokenizer: Any,
    *,
    call_format: CallFormat | None = None,
    message_of: Callable[[Turn], Message] | None = None,
) -> Rerender:
    """Whole conversations rendered anew for each turn; arguments as for `new_bridge`.

    Args:
      message_of: a turn as a message of the history; by default its text as sampled.
    """
    template = as_chat_template(tokenizer)
    notation = call_format or template_notation(template)
    return Rerender(template, notation, end_of_turn_ids(template.tokenizer), message_of or _as_sampled)


def _as_sampled(turn: Turn) -> Message:
    return {"role": "assistant", "content": turn.text}


def _short(messages: Sequence[Message]) -> list[Message]:
    """The system message and the first question alone: for templates that refuse calls as text in the history."""
    head = [m for m in messages[:1] if m["role"] in ("system", "developer")]
    return head + [m for m in messages if m["role"] == "user"][:1]
