"""The dialogue in a terminal, or over a pipe: one line in is one message, `/quit` or the end of the input ends it."""

import json
import sys
from typing import Any

from dcore_jax.calls import Call
from dcore_jax.chat.session import Reply, Session
from dcore_jax.chat.tools import Toolbox
from dcore_jax.errors import UserError

HELP = "/reset: begin again; /tools: what is offered; /quit: leave"
_DIM, _CALL, _RESPONSE, _ERROR, _PLAIN = "2", "33", "35", "31", ""
_CLOSE = "</think>"


class _Ended(Exception):
    """The input has no further line, or the person leaves."""


class _Screen:
    """Writes with colours on a terminal, plain text elsewhere."""

    def __init__(self, out: Any):
        self._out, self._colours = out, out.isatty()
        self._written = 0  # characters of the turn that is being written

    def line(self, text: str, colour: str = _PLAIN) -> None:
        """A line of its own."""
        self.write(text, colour)
        self.write("\n")

    def write(self, text: str, colour: str = _PLAIN) -> None:
        """A piece of text."""
        if text:
            self._out.write(f"\033[{colour}m{text}\033[0m" if self._colours and colour else text)
            self._out.flush()

    def turn(self, text: str) -> None:
        """A turn as far as it goes: what is new of it, the thought dim."""
        new, end = text[self._written :], 0
        if text.lstrip().startswith("<think>"):
            found = text.find(_CLOSE)
            end = len(text) if found < 0 else found + len(_CLOSE)
        inside = max(0, end - self._written)
        self.write(new[:inside], _DIM)
        self.write(new[inside:])
        self._written = len(text)

    def end_turn(self) -> None:
        """After the last piece of a turn."""
        self.write("\n" if self._written else "")
        self._written = 0


def talk(session: Session, tools: Toolbox, *, inputs: Any = None, out: Any = None) -> None:
    """Reads messages until `/quit`, Ctrl-C or the end of the input, and writes the model's turns as they grow.

    Args:
      inputs, out: text streams, by default this process's. A prompt is shown where `inputs` is a terminal.
    """
    source, screen = inputs or sys.stdin, _Screen(out or sys.stdout)
    screen.line(f"{tools.reset()}\n{HELP}", _DIM)
    try:
        while True:
            text = _read(source, screen, "you> ").strip()
            if not text:
                continue
            if text.startswith("/"):
                _command(text, session, tools, screen)
                continue
            session.add("user", text)
            try:
                _answer(session, tools, source, screen)
            except UserError as error:
                screen.line(f"error: {error}", _ERROR)
    except (_Ended, KeyboardInterrupt):
        screen.write("\n" if source.isatty() else "")


def _command(text: str, session: Session, tools: Toolbox, screen: _Screen) -> None:
    if text == "/quit":
        raise _Ended
    if text == "/reset":
        session.reset()
        screen.line(tools.reset(), _DIM)
    elif text == "/tools":
        screen.line(json.dumps(list(tools.schemas), indent=1, ensure_ascii=False), _DIM)
    else:
        screen.line(HELP, _DIM)


def _answer(session: Session, tools: Toolbox, source: Any, screen: _Screen) -> None:
    """The model's turns until one makes no call, or as many as are allowed in a row."""
    for _ in range(session.config.max_turns):
        calls = _turn(session, tools, screen)
        for number, call in enumerate(calls, start=1):
            screen.line(
                f"call {number}: {call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}", _CALL
            )
        for call in calls:
            content = tools.answer(call)
            if content is None:
                content = _read(source, screen, f"{call.name} answers> ").strip()
            session.add("tool", content, name=call.name)
            screen.line(f"response of {call.name}: {content}", _RESPONSE)
        if not calls:
            return
    screen.line(f"{session.config.max_turns} turns in a row (--max-turns); your turn", _DIM)


def _turn(session: Session, tools: Toolbox, screen: _Screen) -> tuple[Call, ...]:
    """Writes the model's turn as it grows; returns its calls."""
    reply: Reply | None = None
    for piece in session.respond(tools.schemas):
        if isinstance(piece, Reply):
            reply = piece
        else:
            screen.turn(piece)
    assert reply is not None
    screen.turn(reply.text)
    screen.end_turn()
    if reply.finish_reason == "overlong":
        raise UserError(
            "the conversation is longer than --max-length or the model's positions; /reset begins a new one"
        )
    if reply.finish_reason == "length":
        screen.line("cut off: --max-tokens, or the conversation reached --max-length", _DIM)
    if reply.parsed.calls is None:
        screen.line(f"calls that cannot be read: {reply.parsed.error}", _ERROR)
    elif reply.notation and session.notation and reply.notation != session.notation:
        screen.line(f"calls in {reply.notation}; the chat template asks for {session.notation}", _DIM)
    return reply.parsed.calls or ()


def _read(source: Any, screen: _Screen, prompt: str) -> str:
    if source is sys.stdin and source.isatty():
        import readline as readline  # keys that edit the line, and a history

        try:
            return input(prompt)
        except EOFError:
            raise _Ended from None
    line = source.readline()
    if not line:
        raise _Ended
    screen.line(f"{prompt}{line.rstrip()}")  # so that a transcript over a pipe is whole
    return line
