"""The engine in JAX: KV cache, sampling and continuous batching under `jit`."""

from dcore_jax.engines.native.engine import NativeEngine

__all__ = ["NativeEngine"]
