"""The options of a rollout engine, one group for every recipe."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from dcore_jax.config import MAY_CHANGE
from dcore_jax.errors import UserError, check_choice

EngineName = Literal["native", "vllm", "vllm-server"]
ENGINES: tuple[str, ...] = get_args(EngineName)


@dataclass(frozen=True)
class EngineConfig:
    """What samples from the model."""

    name: EngineName = "native"
    """native: JAX, in this process; vllm: vLLM in this process; vllm-server: vLLM over HTTP."""
    servers: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Addresses of vLLM servers, http://host:port; none: one is started here and ends with the run."""
    server_arguments: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Further arguments of a server that is started here, as --tensor-parallel-size=4."""
    slots: int = 64
    """Sequences decoded at the same time, by each server."""
    cache_length: int = 0
    """Positions the native engine's cache starts with; prompt + response: one program, no growth."""
    memory: float | None = field(default=None, metadata=MAY_CHANGE)
    """Share of the GPU's memory for vLLM; None: 0.4 in this process, vLLM's own for a server."""

    def __post_init__(self) -> None:
        check_choice("engine", self.name, ENGINES)
        if self.slots < 1:
            raise UserError(f"engine.slots={self.slots} must be at least 1")
        if self.cache_length < 0:
            raise UserError(f"engine.cache_length={self.cache_length} must be at least 0")
        if self.memory is not None and not 0 < self.memory <= 1:
            raise UserError(f"engine.memory={self.memory} is a share of the GPU's memory, in (0, 1]")
        for option, engines in ENGINE_OF_OPTION.items():
            if getattr(self, option) and self.name not in engines:
                raise UserError(
                    f"engine.{option} is given but the engine is {self.name}; use --engine {engines[-1]} or leave it out"
                )


# Options that only some engines have.
ENGINE_OF_OPTION: dict[str, tuple[str, ...]] = {
    "servers": ("vllm-server",),
    "server_arguments": ("vllm-server",),
    "cache_length": ("native",),
    "memory": ("vllm-server", "vllm"),
}


def unused_engine_options(config: EngineConfig) -> dict[str, str]:
    """Dotted options that the chosen engine does not have, each with the reason."""
    return {
        f"engine.{option}": f"only {' and '.join(engines)} has it"
        for option, engines in ENGINE_OF_OPTION.items()
        if config.name not in engines
    }
