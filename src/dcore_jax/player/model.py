"""A checkpoint ready to be played: its engine, its chat template, and the ids that end its turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dcore_jax import load_hf
from dcore_jax.data.chat_template import ChatTemplate, chat_template
from dcore_jax.data.notation import template_notation
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.engines import Engine, EngineConfig, check_engine_installed, open_engine
from dcore_jax.engines.text_server import TextServerEngine
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, read_model_config
from dcore_jax.player.history import Bridge, new_bridge
from dcore_jax.training import load_policy
from dcore_jax.weights import local_folder, stop_token_ids


@dataclass(frozen=True)
class PlayableModel:
    """What `open_model` opens. Close `engine` when done."""

    name: str  # of the folder that was asked for
    folder: Path  # Hugging Face folder that the weights or the tokenizer came from
    engine: Engine
    template: ChatTemplate
    end_ids: frozenset[int]
    notation: str | None  # in which the template asks for calls; None: it shows no tools
    vocab_size: int
    max_length: int  # tokens of prompt and continuation together

    def bridge(self, call_format: str | None = None) -> Bridge:
        """The history that appends ids; by default calls are read in the template's notation."""
        return new_bridge(self.template, call_format=call_format, end_ids=self.end_ids)


def open_model(
    model: str,
    engine: EngineConfig,
    *,
    max_length: int = 0,
    chat_template_kwargs: Sequence[str] = (),
    dtype: str = "float32",
    output: str | Path = ".",
    steps_per_dispatch: int = 32,
) -> PlayableModel:
    """Loads a checkpoint into an engine.

    Args:
      model: Hugging Face folder or hub id, or the folder of an SFT or RL run.
      max_length: most tokens of a conversation; 0: as many as the model has positions. Never more than those.
      chat_template_kwargs: variables of the template, `key=value` each.
      output: folder for the logs of servers.
      steps_per_dispatch: of the native engine, where text is watched as it grows.

    Raises:
      UserError: no model named or found, no chat template, an engine that is not installed.
    """
    if not model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id, or the folder of an SFT or RL run>"
        )
    check_engine_installed(engine)
    decoder: Decoder | None = None
    if (Path(model) / "run.json").exists():
        decoder, folder = load_policy(model, dtype=dtype)
    else:
        folder = local_folder(model)
    config, tokenizer = read_model_config(folder), load_tokenizer(folder)
    template = chat_template(tokenizer, chat_template_kwargs, datetime.now())
    ends = stop_token_ids(folder, tokenizer)
    length = min(max_length or config.context_length, config.context_length)
    if engine.name == "native" and decoder is None:
        decoder = load_hf(folder, dtype=dtype)
    opened = open_engine(
        engine,
        folder,
        max_length=length,
        decoder=decoder,
        eos_token_ids=sorted(ends),
        output=output,
        dtype=dtype,
        steps_per_dispatch=steps_per_dispatch,
    )
    notation = template_notation(template)
    name = Path(model).name or str(model)
    return PlayableModel(name, folder, opened, template, ends, notation, config.vocab_size, length)


def open_served_model(
    model: str, url: str, *, max_length: int = 0, chat_template_kwargs: Sequence[str] = (), slots: int = 64
) -> PlayableModel:
    """A model behind any OpenAI-compatible server, for evaluation; its tokenizer and template come from a folder.

    Args:
      model: Hugging Face folder or hub id of what is served.
      url: http://host:port of the server.
      max_length, chat_template_kwargs: see `open_model`.
      slots: requests at the same time.

    Raises:
      UserError: no model, no chat template, no answer from the server.
    """
    folder = local_folder(model)
    config, tokenizer = read_model_config(folder), load_tokenizer(folder)
    template = chat_template(tokenizer, chat_template_kwargs, datetime.now())
    length = min(max_length or config.context_length, config.context_length)
    return PlayableModel(
        Path(model).name or str(model),
        folder,
        TextServerEngine(url, tokenizer, slots=slots),
        template,
        stop_token_ids(folder, tokenizer),
        template_notation(template),
        config.vocab_size,
        length,
    )
