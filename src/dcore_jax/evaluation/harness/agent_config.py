"""The options of who plays a benchmark's conversations."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dcore_jax.dtypes import DTypeName
from dcore_jax.engines.config import EngineConfig
from dcore_jax.errors import UserError
from dcore_jax.evaluation.prompting import PromptingConfig
from dcore_jax.player import Limits

Agent = Literal["model", "reference", "empty"]
# Short names of its options, for the benchmarks whose config has a field `agent`.
AGENT_ALIASES = {
    "agent.model": "model",
    "agent.url": "url",
    "agent.engine.name": "engine",
    "agent.prompting.no-think": "no-thinking",
    "agent.prompting.decompose": "decompose",
}


@dataclass(frozen=True)
class AgentConfig:
    """Who answers, and how it is asked."""

    name: Agent = "model"
    """model: an engine or a server; reference: the benchmark's own answers; empty: those without their calls."""
    model: str = ""
    """Hugging Face folder or hub id of the model; with --url the name that the server knows it by."""
    url: str = ""
    """Address of an OpenAI-compatible server, http://host:port/v1; empty: an engine of ours."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the server's key."""
    temperature: float = 0.0
    """Of sampling; 0: the most probable token."""
    top_p: float = 1.0
    """Smallest set of tokens with this mass; 1: all."""
    max_tokens: int = 2048
    """Most tokens of one turn."""
    max_length: int = 32768
    """Most tokens of a conversation; no more than the model's max_position_embeddings."""
    max_turns: int = 60
    """Most turns of one conversation."""
    at_once: int = 32
    """Conversations under way at the same time."""
    seed: int = 0
    """Of sampling."""
    dtype: DTypeName = "float32"
    """Type of the model's computation."""
    strip_thoughts: bool = False
    """Render every prompt anew without earlier thoughts, as a server does; else ids are appended, thoughts with them."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables of the chat template as key=value."""
    prompting: PromptingConfig = field(default_factory=PromptingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.url and not self.model:
            raise UserError("--url needs --model: the name that the server knows the model by")

    @property
    def label(self) -> str:
        """What a summary calls it."""
        if self.name != "model":
            return self.name
        return self.model if self.url else Path(self.model).name

    @property
    def limits(self) -> Limits:
        """Of the player; a tool of a benchmark is given time, since many share its process."""
        return Limits(
            max_length=self.max_length,
            max_tokens=self.max_tokens,
            max_turns=self.max_turns,
            max_calls=4 * self.max_turns,
            call_seconds=120.0,
            reply_seconds=600.0,
            at_once=self.at_once,
        )
