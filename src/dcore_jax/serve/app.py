"""The HTTP application: routes, the key, errors as JSON, responses whole or as server-sent events."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from dcore_jax.player.model import PlayableModel
from dcore_jax.progress import log
from dcore_jax.serve.chat import ChatPrompt, chat_message, chat_prompt
from dcore_jax.serve.driver import EngineDriver, EngineFailed, Ticket, TooManyRequests
from dcore_jax.serve.generation import Piece, encode, follow, requests_of
from dcore_jax.serve.requests import BadRequest, Wanted, decode_body, read_wanted
from dcore_jax.serve.responses import (
    Json,
    call_deltas,
    chat_logprobs,
    completion_logprobs,
    error_body,
    new_head,
    usage,
)
from dcore_jax.serve.text import shown

_MOST_BYTES = 64 * 2**20  # of a body
_MOST_PROMPTS = 1024  # of one request
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The handlers over one model and one engine thread.

    Args:
      key: what clients must send; None: nothing.
      max_tokens: of a chat completion that names none; 0: as many as there is room for.
    """

    def __init__(
        self, model: PlayableModel, driver: EngineDriver, *, name: str, key: str | None, max_tokens: int = 0
    ):
        self._model, self._driver, self._name, self._key = model, driver, name, key
        self._max_tokens = max_tokens
        self._tokenizer = model.template.tokenizer
        self._told: set[str] = set()

    def application(self) -> web.Application:
        """What aiohttp serves."""
        app = web.Application(client_max_size=_MOST_BYTES, middlewares=[self._errors, self._authorised])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    # --- around every handler ---

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadRequest as error:
            return web.json_response(
                error_body(str(error), param=error.param, code=error.code), status=error.status
            )
        except TooManyRequests as error:
            return web.json_response(error_body(str(error), kind="rate_limit_error"), status=429)
        except EngineFailed as error:
            return web.json_response(
                error_body(f"the engine failed: {error}", kind="server_error"), status=500
            )
        except web.HTTPException as error:
            return web.json_response(
                error_body(f"{request.method} {request.path}: {error.reason}"), status=error.status
            )
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:  # a mistake of ours must not end the server
            log(f"{request.method} {request.path}: {type(error).__name__}: {error}")
            return web.json_response(
                error_body(f"internal error: {type(error).__name__}", kind="server_error"), status=500
            )

    @web.middleware
    async def _authorised(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization")
        # The model's name and /health are no secret, and harnesses ask for them without a key; a wrong key is always refused.
        open_to_all = request.method == "GET" and given is None
        if self._key is not None and not open_to_all:
            sent = (given or "").removeprefix("Bearer ").strip()
            if not secrets.compare_digest(sent.encode(), self._key.encode()):
                body = error_body(
                    "wrong API key; send the one that `dcore serve` printed", code="invalid_api_key"
                )
                return web.json_response(body, status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    # --- handlers ---

    async def _health(self, request: web.Request) -> web.StreamResponse:
        failure = self._driver.failure
        return web.json_response(
            {"status": "ok" if failure is None else str(failure)}, status=200 if failure is None else 503
        )

    async def _models(self, request: web.Request) -> web.StreamResponse:
        model = {
            "id": self._name, "object": "model", "created": 0, "owned_by": "dcore_jax", "max_model_len": self._model.max_length,
        }  # fmt: skip
        name = request.match_info.get("name")
        if name is None:
            return web.json_response({"object": "list", "data": [model]})
        if name != self._name:
            raise BadRequest(
                f"no model {name[:80]!r}; there is {self._name!r}", status=404, code="model_not_found"
            )
        return web.json_response(model)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = decode_body(await request.read())
        wanted = self._wanted(body, chat=False)
        prompts = await asyncio.to_thread(self._prompts, body)
        requests = [one for prompt in prompts for one in requests_of(prompt, wanted, self._model)]
        skip = wanted.skip_special_tokens is not False
        head = new_head("text_completion", self._name)
        with self._driver.running(requests, watched=wanted.stream or bool(wanted.stop)) as tickets:
            if wanted.stream:
                writers = [
                    self._stream_completion(i, ticket, wanted, skip) for i, ticket in enumerate(tickets)
                ]
                return await self._stream(request, head, wanted, writers, sum(map(len, prompts)))
            pieces = await asyncio.gather(*(self._last(ticket, wanted, skip) for ticket in tickets))
        choices = [
            {
                "index": i,
                "text": piece.text,
                "finish_reason": piece.finish_reason,
                "logprobs": completion_logprobs(self._tokenizer, piece) if wanted.logprobs else None,
            }
            for i, piece in enumerate(pieces)
        ]
        tokens = usage(sum(map(len, prompts)), sum(piece.generated for piece in pieces))
        return web.json_response({**head, "choices": choices, "usage": tokens})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = decode_body(await request.read())
        wanted = self._wanted(body, chat=True)
        prompt, ids = await asyncio.to_thread(self._chat_prompt, body)
        requests = requests_of(ids, wanted, self._model, self._max_tokens)
        skip = bool(wanted.skip_special_tokens)  # calls may stand between control tokens
        with self._driver.running(requests, watched=wanted.stream or bool(wanted.stop)) as tickets:
            if wanted.stream:
                head = new_head("chat.completion.chunk", self._name)
                writers = [self._stream_chat(i, t, wanted, skip, prompt) for i, t in enumerate(tickets)]
                return await self._stream(request, head, wanted, writers, len(ids))
            pieces = await asyncio.gather(*(self._last(ticket, wanted, skip) for ticket in tickets))
        choices = []
        for i, piece in enumerate(pieces):
            message = chat_message(prompt.begun + piece.text, prompt, self._model.notation)
            reason = "tool_calls" if message.get("tool_calls") else piece.finish_reason
            logprobs = chat_logprobs(self._tokenizer, piece) if wanted.logprobs else None
            choices.append({"index": i, "message": message, "finish_reason": reason, "logprobs": logprobs})
        tokens = usage(len(ids), sum(piece.generated for piece in pieces))
        return web.json_response(
            {**new_head("chat.completion", self._name), "choices": choices, "usage": tokens}
        )

    # --- pieces of them ---

    def _wanted(self, body: Json, *, chat: bool) -> Wanted:
        wanted = read_wanted(body, chat=chat)
        named = body.get("model")
        news = {f"fields that nothing here reads: {name}" for name in wanted.unknown}
        if named not in (None, self._name):
            news.add(f"a client asks for the model {str(named)[:80]!r}; it gets {self._name!r}")
        for line in sorted(news - self._told):
            log(line)
        self._told |= news
        return wanted

    def _prompts(self, body: Json) -> list[list[int]]:
        """The prompts of a plain completion: a text, ids, or a list of either."""
        given = body.get("prompt")
        prompts: Sequence[Any] = [given]
        if isinstance(given, list) and not all(type(i) is int for i in given):
            prompts = given
        if len(prompts) > _MOST_PROMPTS:
            raise BadRequest(f"{len(prompts)} prompts; {_MOST_PROMPTS} at most", param="prompt")
        add = body.get("add_special_tokens") is not False
        found = []
        for prompt in prompts:
            if isinstance(prompt, str):
                found.append(encode(self._model, prompt, add_special_tokens=add))
            elif isinstance(prompt, list) and all(type(i) is int for i in prompt):
                found.append(prompt)
            else:
                raise BadRequest(
                    "prompt must be a text, a list of token ids, or a list of those", param="prompt"
                )
        return found

    def _chat_prompt(self, body: Json) -> tuple[ChatPrompt, list[int]]:
        prompt = chat_prompt(body, self._model)
        return prompt, encode(self._model, prompt.text)

    async def _last(self, ticket: Ticket, wanted: Wanted, skip: bool) -> Piece:
        """A choice as it ended."""
        pieces = follow(ticket, self._tokenizer, wanted, skip_special_tokens=skip)
        return [piece async for piece in pieces][-1]

    async def _stream(
        self, request: web.Request, head: Json, wanted: Wanted, writers: Sequence[Any], prompt_tokens: int
    ) -> web.StreamResponse:
        """Server-sent events of all choices, then `[DONE]`."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        generated = 0

        async def send(body: Json) -> None:
            await response.write(b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n")

        async def write(writer: Any) -> None:
            nonlocal generated
            async for choice, tokens in writer:
                generated += tokens
                await send({**head, "choices": [choice], **({"usage": None} if wanted.stream_usage else {})})

        tasks = [asyncio.create_task(write(writer)) for writer in writers]
        try:
            await asyncio.gather(*tasks)
            if wanted.stream_usage:
                await send({**head, "choices": [], "usage": usage(prompt_tokens, generated)})
        except EngineFailed as error:  # the status line is sent already
            await send(error_body(f"the engine failed: {error}", kind="server_error"))
        finally:
            for task in tasks:
                task.cancel()
        with contextlib.suppress(ConnectionError):
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        return response

    async def _stream_completion(self, index: int, ticket: Ticket, wanted: Wanted, skip: bool):
        """(choice, tokens since the last one) of each chunk."""
        sent = tokens = reported = 0
        async for piece in follow(ticket, self._tokenizer, wanted, skip_special_tokens=skip):
            if len(piece.text) == sent and piece.finish_reason is None:
                continue
            logprobs = (
                completion_logprobs(self._tokenizer, piece, reported, sent) if wanted.logprobs else None
            )
            choice = {
                "index": index,
                "text": piece.text[sent:],
                "logprobs": logprobs,
                "finish_reason": piece.finish_reason,
            }
            yield choice, piece.generated - tokens
            sent, tokens, reported = len(piece.text), piece.generated, len(piece.ids)

    async def _stream_chat(self, index: int, ticket: Ticket, wanted: Wanted, skip: bool, prompt: ChatPrompt):
        """The same of a chat: the thought, the content up to where calls may begin, and the calls whole."""

        def chunk(delta: Json, reason: str | None = None, logprobs: Json | None = None) -> Json:
            return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

        yield chunk({"role": "assistant", "content": ""}), 0
        thought = content = ""
        tokens = reported = 0
        async for piece in follow(ticket, self._tokenizer, wanted, skip_special_tokens=skip):
            text = prompt.begun + piece.text
            now = shown(text, tools=bool(prompt.tools))
            message: Json = {}
            if piece.finish_reason is not None:
                message = chat_message(text, prompt, self._model.notation)
                now = now._replace(
                    thought=message.get("reasoning_content", ""), content=message["content"] or ""
                )
            delta = {}
            if now.thought.startswith(thought) and now.thought != thought:
                delta["reasoning_content"], thought = now.thought[len(thought) :], now.thought
            if now.content.startswith(content) and now.content != content:
                delta["content"], content = now.content[len(content) :], now.content
            if delta or (wanted.logprobs and len(piece.ids) > reported):
                logprobs = chat_logprobs(self._tokenizer, piece, reported) if wanted.logprobs else None
                yield chunk(delta, logprobs=logprobs), piece.generated - tokens
                tokens, reported = piece.generated, len(piece.ids)
            if piece.finish_reason is not None:
                for call in call_deltas(message.get("tool_calls", ())):
                    yield chunk(call), 0
                reason = "tool_calls" if message.get("tool_calls") else piece.finish_reason
                yield chunk({}, reason), piece.generated - tokens
