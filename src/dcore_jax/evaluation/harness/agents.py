"""Who plays a benchmark's conversations: an engine, a server that speaks OpenAI's chat API, or the reference itself."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcore_jax import load_hf
from dcore_jax.calls import Call, render_calls, split_thought
from dcore_jax.data.chat_template import chat_template
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.engines.engine import SamplingParams
from dcore_jax.engines.open import open_engine
from dcore_jax.errors import UserError
from dcore_jax.evaluation.harness.agent_config import AgentConfig
from dcore_jax.evaluation.harness.served_agent import ChatServer, play_served
from dcore_jax.models import read_model_config
from dcore_jax.nano.config import NANO_BASE
from dcore_jax.player import Limits, Session, Turn, new_bridge, new_rerender, play, scripted_engine
from dcore_jax.player.session import Message
from dcore_jax.weights import local_folder, stop_token_ids

# Of a scripted player: a prompt in the small tokenizer is as long as its text.
_SCRIPTED = Limits(
    max_length=2_000_000,
    max_tokens=100_000,
    max_turns=200,
    max_calls=400,
    max_observation=400_000,
    call_seconds=300.0,
    reply_seconds=600.0,
    at_once=4,
)


def play_sessions(
    config: AgentConfig,
    sessions: Sequence[Session],
    references: Mapping[str, Sequence[Mapping[str, Any]]],
    output: Path,
    on_played: Callable[[Session, str | None], None],
) -> None:
    """Plays every session to its end.

    Args:
      references: turns of a perfect model by the session's id, for the scripted players.
      output: folder for the logs of an engine.
      on_played: given each session as it ends, with the reason where it failed.

    Raises:
      UserError: no model is named, or it cannot be opened.
    """
    if config.name != "model":
        _play_scripted(config, sessions, references, on_played)
    elif config.url:
        server = ChatServer(config.url, config.model, os.environ.get(config.key_variable, ""))
        play_served(sessions, server, config, on_played)
    else:
        _play_engine(config, sessions, output, on_played)


def _play_engine(
    config: AgentConfig,
    sessions: Sequence[Session],
    output: Path,
    on_played: Callable[[Session, str | None], None],
) -> None:
    if not config.model:
        raise UserError(
            "no model: give --model <folder or hub id> (with --url, a server's), --predictions FILE, or --agent reference"
        )
    folder = local_folder(config.model)
    tokenizer = load_tokenizer(folder)
    options = config.prompting.template_options(config.chat_template_kwargs)
    template = chat_template(tokenizer, options)
    ends = sorted(stop_token_ids(folder, tokenizer))
    longest = min(config.max_length, read_model_config(folder).context_length)
    engine = open_engine(
        config.engine,
        folder,
        max_length=longest,
        decoder=load_hf(folder, dtype=config.dtype) if config.engine.name == "native" else None,
        eos_token_ids=ends,
        output=output,
        dtype=config.dtype,
        progress=False,
    )
    sampling = SamplingParams(temperature=config.temperature, top_p=config.top_p, seed=config.seed)
    try:
        play(
            sessions,
            engine,
            new_rerender(template, message_of=_without_thought)
            if config.strip_thoughts
            else new_bridge(template, end_ids=ends),
            replace(config.limits, max_length=longest),
            sampling=sampling,
            progress=True,
            on_played=lambda played: on_played(played.session, played.error),
        )
    finally:
        engine.close()


def _play_scripted(
    config: AgentConfig,
    sessions: Sequence[Session],
    references: Mapping[str, Sequence[Mapping[str, Any]]],
    on_played: Callable[[Session, str | None], None],
) -> None:
    tokenizer = load_tokenizer(local_folder(NANO_BASE))
    turns = [[_written(turn) for turn in references[session.id]] for session in sessions]
    if config.name == "empty":
        turns = [[_written({"text": references[session.id][-1]["text"]})] for session in sessions]

    def text_of(number: int, turn: int) -> str:
        script = turns[number]
        return script[turn] if turn < len(script) else script[-1]

    play(
        sessions,
        scripted_engine(tokenizer, text_of),
        new_bridge(tokenizer, call_format="python"),
        _SCRIPTED,
        progress=True,
        on_played=lambda played: on_played(played.session, played.error),
    )


def _without_thought(turn: Turn) -> Message:
    """A turn in the history of a server that keeps no thoughts: its words, and its calls as the template writes them."""
    if not turn.calls:
        return {"role": "assistant", "content": split_thought(turn.text)[1].strip()}
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in turn.calls
    ]
    return {"role": "assistant", "content": turn.parsed.reply, "tool_calls": calls}


def _written(turn: Mapping[str, Any]) -> str:
    """A turn as the small model of the package writes it: calls, or words."""
    calls = [Call(call["name"], call["arguments"]) for call in turn.get("calls", ())]
    return render_calls(calls, "python") if calls else turn["text"]
