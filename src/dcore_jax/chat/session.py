"""A conversation with a checkpoint: messages through its chat template into the native engine, turn by turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dcore_jax import load_hf
from dcore_jax.calls import ParsedResponse, parse_any_response
from dcore_jax.data.chat_template import ChatTemplate, chat_template, render_chat
from dcore_jax.data.malformed import Malformed
from dcore_jax.data.notation import template_notation
from dcore_jax.data.tokenizer import load_tokenizer
from dcore_jax.data.tool_schemas import tool_name
from dcore_jax.dtypes import DTypeName
from dcore_jax.engines.engine import Request, Sample, SamplingParams
from dcore_jax.engines.native import NativeEngine
from dcore_jax.errors import UserError
from dcore_jax.training import load_policy
from dcore_jax.weights import local_folder, stop_token_ids

_STEPS = 4  # tokens a dispatch of the engine, between two looks at what was written
_UNFINISHED = "\ufffd"  # what the bytes of a character decode to that is not whole yet


@dataclass(frozen=True)
class ChatConfig:
    """A conversation with a checkpoint."""

    model: str = ""
    """Hugging Face folder, hub id, or the folder of an SFT or RL run."""
    tools: str = ""
    """JSON file of tool schemas, which you answer; `toolworld` or a family of it, as files: run on a fresh state; empty: none."""
    system: str = ""
    """Text of a system turn before the conversation; empty: none."""
    temperature: float = 0.0
    """Of sampling; 0: the most probable token."""
    top_p: float = 1.0
    """Smallest set of tokens with this mass; 1: all."""
    max_tokens: int = 512
    """Most tokens of one turn."""
    max_length: int = 4096
    """Most tokens of the whole conversation; no more than the model's context length."""
    max_turns: int = 8
    """Turns in a row that the model may take by calling tools, before it is your turn."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables of the chat template as key=value, such as enable_thinking=false."""
    dtype: DTypeName = "float32"
    """Type of the model's computation."""
    seed: int = 0
    """Of sampling, and of the tool world's state."""

    def __post_init__(self) -> None:
        SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )
        for name, least in (("max_length", 2), ("max_turns", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")


@runtime_checkable
class StreamingEngine(Protocol):
    """What a conversation needs of an engine: the native one's methods."""

    def submit(self, requests: Sequence[Request]) -> None: ...

    def poll(self) -> list[Sample]: ...

    def sampled_so_far(self) -> dict[str | int, tuple[int, ...]]: ...


@dataclass(frozen=True)
class Reply:
    """The model's turn."""

    text: str  # with what the template opened of it
    parsed: ParsedResponse
    notation: str | None  # in which its calls are written; None: it makes none, or they cannot be read
    finish_reason: str  # stop, length, or overlong


@dataclass
class Session:
    """A conversation under way."""

    config: ChatConfig
    engine: StreamingEngine
    template: ChatTemplate
    notation: str | None  # in which the template asks for calls; None: it shows no tools. Any is read
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0  # of the model, since the start: each has a seed of its own

    def reset(self) -> None:
        """Forgets the conversation."""
        self.messages = [{"role": "system", "content": self.config.system}] if self.config.system else []

    def add(self, role: str, content: str, **fields: Any) -> None:
        """Appends a message."""
        self.messages.append({"role": role, "content": content, **fields})

    def respond(self, tools: tuple[dict[str, Any], ...]) -> Iterator[str | Reply]:
        """The model's turn: the text so far as it grows, then the whole as a Reply, which is added to the conversation.

        Raises:
          UserError: the chat template refuses the conversation; it is left as it was.
        """
        tokenizer = self.template.tokenizer
        try:
            prompt = render_chat(self.template, self.messages, tools or None, add_generation_prompt=True)
        except Malformed as problem:
            raise UserError(f"{problem}; /reset begins a new conversation") from None
        opening = "<think>\n" if prompt.rstrip().endswith("<think>") else ""
        config, self.turns = self.config, self.turns + 1
        sampling = SamplingParams(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed + self.turns,
        )
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        self.engine.submit([Request(ids, sampling, self.turns)])
        samples: list[Sample] = []
        while not samples:
            samples = self.engine.poll()
            so_far = self.engine.sampled_so_far().get(self.turns, ())
            text = opening + tokenizer.decode(list(so_far))
            if so_far and not text.endswith(_UNFINISHED):
                yield text
        (sample,) = samples
        text = opening + tokenizer.decode(list(sample.content_ids))
        parsed, notation = parse_any_response(text, [tool_name(tool) for tool in tools])
        if sample.finish_reason != "overlong":
            self.add("assistant", text)
        yield Reply(text, parsed, notation, sample.finish_reason)


def open_session(config: ChatConfig) -> Session:
    """Loads the model and its tokenizer.

    Raises:
      UserError: no model named or found, or one whose tokenizer has no chat template.
    """
    if not config.model:
        raise UserError(
            "no model: give --model <Hugging Face folder or hub id, or the folder of an SFT or RL run>"
        )
    if (Path(config.model) / "run.json").exists():
        decoder, folder = load_policy(config.model, dtype=config.dtype)
    else:
        folder = local_folder(config.model)
        decoder = load_hf(folder, dtype=config.dtype)
    tokenizer = load_tokenizer(folder)
    template = chat_template(tokenizer, config.chat_template_kwargs, datetime.now())
    engine = NativeEngine(
        decoder,
        slots=1,
        max_length=min(config.max_length, decoder.config.context_length),
        eos_token_ids=sorted(stop_token_ids(folder, tokenizer)),
        steps_per_dispatch=_STEPS,
    )
    session = Session(config, engine, template, template_notation(template))
    session.reset()
    return session
