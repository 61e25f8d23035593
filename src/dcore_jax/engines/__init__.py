"""Engines that sample from a model: one interface, several implementations."""

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
from dcore_jax.engines.open import EngineName, open_engine

__all__ = [
    "Engine",
    "EngineName",
    "EngineStats",
    "FinishReason",
    "NativeEngine",
    "Request",
    "Sample",
    "SamplingParams",
    "fan_out",
    "open_engine",
]
