"""Engines that sample from a model: one interface, several implementations."""

from dcore_jax.engines.config import EngineConfig, EngineName
from dcore_jax.engines.engine import (
    Engine,
    EngineStats,
    FinishReason,
    Request,
    Sample,
    SamplingParams,
    fan_out,
)
from dcore_jax.engines.native import NativeEngine
from dcore_jax.engines.open import check_engine_installed, open_engine

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineName",
    "EngineStats",
    "FinishReason",
    "NativeEngine",
    "Request",
    "Sample",
    "SamplingParams",
    "check_engine_installed",
    "fan_out",
    "open_engine",
]
