"""An agent behind OpenAI's chat API: the same sessions as the player's, with messages instead of ids."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

from dcore_jax.calls import Call, ParsedResponse, parse_any_response
from dcore_jax.data.tool_schemas import tool_name
from dcore_jax.errors import UserError, first_line
from dcore_jax.evaluation.harness.agent_config import AgentConfig
from dcore_jax.player import Session, Turn
from dcore_jax.progress import progress_bar

_SECONDS = 600.0  # for one answer
_TRIES = 4
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})


class ChatServer(NamedTuple):
    """An OpenAI-compatible server."""

    url: str  # http://host:port/v1
    model: str
    key: str = ""

    def ask(self, messages: Sequence[dict[str, Any]], tools: Any, **sampling: Any) -> dict[str, Any]:
        """The choice of a chat completion: `message` and `finish_reason`. Waits and asks again where the server is busy.

        Raises:
          UserError: no such server, or one that refuses the request.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_on_the_wire(m) for m in messages],
            **sampling,
        }
        if tools:
            body["tools"] = list(tools)
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.key or 'none'}"},
        )
        for attempt in range(_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                    return json.load(answer)["choices"][0]
            except urllib.error.HTTPError as error:
                why = f"status {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in _AGAIN or attempt == _TRIES - 1:
                    raise UserError(
                        f"{self.url} refuses a chat completion: {' '.join(why.split())}"
                    ) from None
            except (OSError, ValueError, KeyError, IndexError) as error:
                if attempt == _TRIES - 1:
                    raise UserError(f"{self.url} gives no chat completion: {first_line(error)}") from None
            time.sleep(2.0**attempt)
        raise AssertionError("unreachable")


def _on_the_wire(message: dict[str, Any]) -> dict[str, Any]:
    """A message as the API has it: the arguments of a call are JSON text there, and a mapping in chat templates."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        if not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(dict(function["arguments"]))
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def play_served(
    sessions: Sequence[Session],
    server: ChatServer,
    config: AgentConfig,
    on_played: Callable[[Session, str | None], None],
) -> None:
    """Plays every session, `config.at_once` at the same time. A session that fails is told to `on_played`; the others go on.

    Raises:
      UserError: the server refuses what it is asked.
    """
    bar = progress_bar(len(sessions), unit="conversation", desc="playing", transient=True)
    with ThreadPoolExecutor(config.at_once) as pool:
        futures = {pool.submit(_play, session, server, config): session for session in sessions}
        try:
            for future in as_completed(futures):
                on_played(futures[future], future.result())
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            bar.close()


def _play(session: Session, server: ChatServer, config: AgentConfig) -> str | None:
    """Why the conversation failed; None where it came to its end."""
    try:
        try:
            _converse(session, server, config)
        finally:
            session.close()
    except UserError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _converse(session: Session, server: ChatServer, config: AgentConfig) -> None:
    opening = session.open()
    messages = list(opening.messages)
    names = [tool_name(dict(tool)) for tool in opening.tools or ()]
    sampling: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "seed": config.seed,
    }
    if config.prompting.no_think:
        sampling["chat_template_kwargs"] = {"enable_thinking": False}
    for number in range(config.max_turns):
        choice = server.ask(messages, opening.tools, **sampling)
        turn, message = _turn(number, choice, names)
        messages.append(message)
        session.parse(turn.text)
        if turn.calls:
            for call, made in zip(turn.calls, message["tool_calls"]):
                content = _run(session, call)
                messages.append({"role": "tool", "tool_call_id": made["id"], "content": content})
            if session.done:
                return
            continue
        new = session.reply(turn)
        if new is None:
            return
        messages += [dict(one) for one in new]


def _run(session: Session, call: Call) -> str:
    try:
        return session.call(call)
    except Exception as error:
        return json.dumps(
            {"error": f"{call.name[:80]} failed: {type(error).__name__}: {first_line(error)}"[:400]}
        )


def _turn(number: int, choice: dict[str, Any], names: Sequence[str]) -> tuple[Turn, dict[str, Any]]:
    """The server's turn, and as it stands in the history: calls that the server parsed, or that its text holds."""
    said = choice["message"]
    text = said.get("content") or ""
    parsed = parse_any_response(text, names)[0]
    if said.get("tool_calls"):
        parsed = _structured(said["tool_calls"], parsed.reply)
    if choice.get("finish_reason") == "length":
        parsed = parsed._replace(calls=None, error="the turn did not end")
    made = [
        {
            "id": f"call_{number}_{i}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
        }
        for i, call in enumerate(parsed.calls or ())
    ]
    message: dict[str, Any] = {"role": "assistant", "content": parsed.reply if made else text}
    if made:
        message["tool_calls"] = made
    finish = "length" if choice.get("finish_reason") == "length" else "stop"
    return Turn(number, text, parsed, (), (), 0, finish), message  # type: ignore[arg-type]


def _structured(tool_calls: Sequence[dict[str, Any]], reply: str) -> ParsedResponse:
    calls = []
    for made in tool_calls:
        function = made.get("function") or {}
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict) or not function.get("name"):
            return ParsedResponse(
                None, None, reply, error="a call without a name, or whose arguments are no JSON object"
            )
        calls.append(Call(function["name"], arguments))
    return ParsedResponse(None, tuple(calls), reply)
