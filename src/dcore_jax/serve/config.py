"""The options of `dcore serve`."""

from dataclasses import dataclass, field

from dcore_jax.dtypes import DTypeName
from dcore_jax.engines.config import EngineConfig
from dcore_jax.errors import UserError


@dataclass(frozen=True)
class ServeConfig:
    """An OpenAI-compatible server over an engine."""

    model: str = ""
    """Hugging Face folder or hub id, or the folder of an SFT or RL run."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: at every one of this machine, for others to reach."""
    port: int = 8000
    """Port; 0: a free one, which is printed."""
    api_key: str = ""
    """What clients must send as `Authorization: Bearer KEY`; empty: one is drawn and printed; none: no key, loopback only."""
    name: str = ""
    """The model's name in responses; empty: its folder's."""
    max_length: int = 0
    """Most tokens of prompt and completion; 0: as many as the model has positions."""
    max_tokens: int = 0
    """Tokens of a chat completion that names none; 0: as many as there is room for."""
    chat_template_kwargs: tuple[str, ...] = ()
    """Variables of the chat template as key=value, such as enable_thinking=false."""
    dtype: DTypeName = "float32"
    """Type of the model's computation."""
    waiting: int = 1024
    """Requests that may wait for a slot; further ones are answered with status 429."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What samples."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"port={self.port} must be between 0 and 65535")
        if self.api_key == "none" and not is_loopback(self.host):
            raise UserError(f"--api-key none is for loopback only, and --host {self.host} is not; give a key")
        for name, least in (("max_length", 0), ("max_tokens", 0), ("waiting", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.max_length == 1:
            raise UserError("max_length=1 leaves no room for a completion; give at least 2")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    return host in ("localhost", "::1") or host.startswith("127.")
