"""`dcore serve`: loads the model, listens, and ends at Ctrl-C or SIGTERM."""

import asyncio
import secrets
import signal
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

from dcore_jax.errors import UserError, first_line
from dcore_jax.player.model import PlayableModel, open_model
from dcore_jax.progress import log
from dcore_jax.serve.config import ServeConfig, is_loopback
from dcore_jax.serve.driver import EngineDriver

_STEPS = 8  # tokens a dispatch of the native engine, between two looks at what was written
_PATIENCE = 5.0  # seconds for connections to end


def serve(config: ServeConfig) -> None:
    """Serves until a signal ends it.

    Raises:
      UserError: aiohttp is missing, the model cannot be loaded, or the port is taken.
    """
    if find_spec("aiohttp") is None:
        raise UserError("dcore serve needs the package aiohttp: pip install 'dcore-jax[serve]'")
    model = open_model(
        config.model,
        config.engine,
        max_length=config.max_length,
        chat_template_kwargs=config.chat_template_kwargs,
        dtype=config.dtype,
        steps_per_dispatch=_STEPS,
    )
    try:
        asyncio.run(listen(model, config))
    finally:
        model.engine.close()


async def listen(
    model: PlayableModel, config: ServeConfig, *, ready: Callable[[str, int, str | None], None] | None = None
) -> None:
    """Listens until SIGINT, SIGTERM or cancellation.

    Args:
      ready: given address, port and key once it listens.
    """
    from aiohttp import web

    from dcore_jax.serve.app import Server

    key = None if config.api_key == "none" else config.api_key or secrets.token_urlsafe(24)
    name = config.name or model.name
    driver = EngineDriver(model.engine, slots=config.engine.slots, waiting=config.waiting)
    server = Server(model, driver, name=name, key=key, max_tokens=config.max_tokens)
    # handler_cancellation: a client that goes away frees its slots.
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=_PATIENCE
    )
    await runner.setup()
    stop = asyncio.Event()
    try:
        try:
            site = web.TCPSite(runner, config.host, config.port)
            await site.start()
        except OSError as error:
            raise UserError(
                f"cannot listen at {config.host}:{config.port} ({first_line(error)}); give another --port, or 0 for a free one"
            ) from None
        port = runner.addresses[0][1]
        _greet(config, name, port, key)
        if ready is not None:
            ready(config.host, port, key)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(RuntimeError, ValueError, NotImplementedError):  # not the main thread
                loop.add_signal_handler(number, stop.set)
        await stop.wait()
    finally:
        await runner.cleanup()
        driver.close()
        log(f"ended: {driver.finished:,} completions, {driver.tokens:,} tokens")


def _greet(config: ServeConfig, name: str, port: int, key: str | None) -> None:
    host = "127.0.0.1" if is_loopback(config.host) or config.host in ("0.0.0.0", "::") else config.host
    log(f"serving {name} at http://{host}:{port}/v1")
    if key is None:
        log("API key: none asked for")
    elif config.api_key:
        log("API key: the one given")
    else:
        log(f"API key: {key}")
    reach = "this machine only" if is_loopback(config.host) else "every machine that reaches this one"
    log(f"listening at {config.host}: {reach}; Ctrl-C ends it")
