"""An OpenAI-compatible server over any engine: `dcore serve`."""

from dcore_jax.serve.config import ServeConfig
from dcore_jax.serve.run import serve

__all__ = ["ServeConfig", "serve"]
