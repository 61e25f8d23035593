"""Tool calls as data, and the text formats models write them in."""

from dcore_jax.calls.call import JSON, Call

__all__ = ["JSON", "Call"]
